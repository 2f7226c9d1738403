"""The two branches of a batch in ``TwinLockstep``: through the float and the quantized model."""

from collections.abc import Callable
from typing import Any

from mmbitsplit.passes.branches import Branch
from mmbitsplit.passes.lockstep import Worker
from mmbitsplit.passes.unit_module import OpenCall


class BatchesDiffer(Exception):
    """A batch calls other layers than was expected, or calls them more or less often."""


class FloatBranch(Branch):
    """A batch on its way through the float model.

    Attributes:
        open: Calls of units that have begun and not ended.
    """

    def __init__(self, batch: int, work: Callable[['FloatBranch'], None], state: Any):
        super().__init__(batch, work, state)
        self.open: dict[str, OpenCall] = {}


class QuantizedBranch(Worker):
    """A batch on its way through the quantized model.

    Attributes:
        behind: It waits for a result that the float branch has not recorded yet.
        open: Calls of units that have begun and not ended.
    """

    def __init__(self, batch: int, work: Callable[[Any], None], state: Any):
        super().__init__(batch, work, state)
        self.behind = False
        self.open: dict[str, OpenCall] = {}
