"""Watches a quantized model on as many batches as it takes to see all of its layers."""

from collections.abc import Collection
from functools import partial

from mmbitsplit.models import DataFlow
from mmbitsplit.models.surgery.watch_quantized import watch_quantized
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import barrier

MOST_WATCHED = 8  # batches; a layer that none of them calls is known by its name alone


def quantized_flow(forwards: Forwards, layers: Collection[str]) -> DataFlow:
    """Returns what the first batches that call all layers show together.

    Args:
        forwards: Of the quantized model.
        layers: Names of the layers to be seen.
    """
    flows: list[DataFlow] = []
    for number in list(forwards.batches)[:MOST_WATCHED]:
        with forwards.whole(number):
            flows.append(watch_quantized(
                forwards.model, partial(forwards.run, number),
                inputs=forwards.batches[number],
                barriers=[barrier(forwards.replay_points)]))
        if set(layers) <= {name for flow in flows for name in flow.calls}:
            break
    return merge_flows(flows)
