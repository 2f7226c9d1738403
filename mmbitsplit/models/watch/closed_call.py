"""Says of a call that multiplies why it stays as it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClosedCall:
    """A call that multiplies activations and stays as it is.

    Args:
        module: Name of the module in whose forward it is; ``None`` outside of all.
        function: What is called.
        reason: Why it stays.
    """

    module: str | None
    function: str
    reason: str
