"""Which layers read one tensor, so that its width is one decision."""

from collections.abc import Iterator

from mmbitsplit.models import DataFlow
from mmbitsplit.models.watch.module_calls import OUTSIDE
from mmbitsplit.structures import BitPlan


def shared_inputs(plan: BitPlan, flow: DataFlow, every: bool) -> list[frozenset[str]]:
    """Returns sets of layers whose inputs are to have one width, as ``allocate`` takes them.

    Args:
        plan: Of all layers. Those that read a quantized residual stream have the stream's codes,
            so that they share in any case.
        flow: What was watched.
        every: Whether all layers that read one tensor share: query, key and value of an attention,
            a downsampling layer beside a block's first.
    """
    groups = [frozenset(stream.readers) for stream in plan.streams]
    if every:
        planned = {layer.name for layer in plan.layers}
        groups += [readers & planned for readers in _readers(flow)]
    return [group for group in dict.fromkeys(groups) if len(group) > 1]


def _readers(flow: DataFlow) -> Iterator[frozenset[str]]:
    """Of each tensor, the modules that read it."""
    for run in flow.module_calls:
        for numbers in run.readers.values():
            yield frozenset(run.calls[number].name for number in numbers if number != OUTSIDE)
