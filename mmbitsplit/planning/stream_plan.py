"""Which tensors are residual streams: read by a layer and by something else, such as an addition.

Papers that quantize what layers give have the sum of a residual block in codes for the next block's
first layer and for its skip connection alike. Here layers quantize what they read, so such tensors
are found, and rounded where they are given. A batch norm that reads the sum before any layer does
(transformers, pre-activation blocks) leaves no layer that reads it: there is no stream then.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.module_calls import OUTSIDE, RunCalls
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import BitPlan, LayerPlan, OutputPlan, PlanSpec, StreamPlan
from mmbitsplit.structures.spec import RESIDUAL_PLACEMENTS


@dataclass
class _Found:
    """Tensors that a layer and something else read.

    Args:
        given: By the module that gives one, the layers that read it.
        open: Layers that read one which no module by itself gives.
    """

    given: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)


def plan_streams(plan: BitPlan, flow: DataFlow, folded: Mapping[str, str],
                 given: PlanSpec | None = None, several: bool = True) -> BitPlan:
    """Adds the residual streams that are to be quantized.

    A stream has several widths where all layers that ask for it have the same ones.

    Args:
        plan: Of all layers.
        flow: What was watched.
        folded: Batch norms that can be folded, with their layers.
        given: A plan whose ``streams`` win; they have one width.
        several: Whether a layer that gives a stream by itself may have several widths of outputs;
            other modules may in any case.

    Raises:
        ValueError: The given plan names a stream that there is not.
    """
    plans = {layer.name: layer for layer in plan.layers}
    found = _find(flow.module_calls, plans, folded)
    widths = _given_widths(given, found)
    streams = []
    for name, readers in found.given.items():
        asked = [plans[reader] for reader in readers
                 if plans[reader].activation.placement in RESIDUAL_PLACEMENTS]
        # Of readers that differ in width the narrower ones round once more.
        bits = widths[name] if name in widths else max(
            filter(None, (reader.activation.num_bits for reader in asked)), default=None)
        if bits is not None:
            may = several or name not in plans
            own = {reader.input_widths for reader in asked} if may else set()
            of_all = own.pop() if len(own) == 1 and name not in widths else ()
            streams.append(StreamPlan(name, bits, tuple(
                reader for reader in readers
                if _shares(plans[reader], bits, of_all if may else None, flow)),
                on_layer=name in plans, widths=of_all))
    still_open = tuple(name for name in found.open
                       if plans[name].activation.placement in RESIDUAL_PLACEMENTS)
    return replace(plan, layers=tuple(_with_streams(layer, streams) for layer in plan.layers),
                   streams=tuple(streams), open_streams=still_open)


def _find(runs: Sequence[RunCalls], plans: Mapping[str, LayerPlan], folded: Mapping[str, str],
          ) -> _Found:
    found = _Found()
    for run in runs:
        counts = Counter(call.name for call in run.calls)
        for value, numbers in run.readers.items():
            readers = [run.calls[number].name for number in numbers if number != OUTSIDE]
            layers = [name for name in dict.fromkeys(readers)
                      if name in plans and plans[name].activation.num_bits is not None]
            if not layers or all(name in plans for name in readers):
                continue
            name = _giver(run, value, counts, plans, folded)
            known = found.open if name is None else found.given.setdefault(name, [])
            known += [layer for layer in layers if layer not in known]
    return found


def _giver(run: RunCalls, value: int, counts: Mapping[str, int], plans: Mapping[str, LayerPlan],
           folded: Mapping[str, str]) -> str | None:
    """The innermost module that is called once and gives a value; else the layer that makes it."""
    makes = None
    for call in reversed(run.calls):  # those inside others come last
        if call.gives != value or call.takes == value:
            continue
        layer = folded.get(call.name, call.name)
        if layer in plans:
            makes = layer
        elif counts[call.name] == 1 and call.name:
            return call.name
    return makes


def _given_widths(given: PlanSpec | None, found: _Found) -> dict[str, int | None]:
    widths = {} if given is None else {row.name: row.num_bits for row in given.streams}
    for name in widths:
        if name not in found.given:
            raise ValueError(f"quantization.plan has a stream of '{name}', which gives no tensor "
                             'that a quantized layer and something else read; '
                             f'{nearest(name, found.given) if found.given else "there is none"}. '
                             'Take it out.')
    return widths


def _shares(layer: LayerPlan, bits: int, widths: tuple[int, ...] | None, flow: DataFlow) -> bool:
    """Whether a layer takes the codes of a stream as they are, at each of its widths; where
    ``None``, such a layer has the stream's one width."""
    changed_first = layer.name in flow.inside and bool(flow.inside[layer.name].before)
    alike = widths is None or layer.input_widths == widths
    return layer.activation.num_bits == bits and alike and not changed_first


def _with_streams(layer: LayerPlan, streams: Sequence[StreamPlan]) -> LayerPlan:
    """A layer that reads a stream has its one scale; one that gives a stream quantizes its own."""
    for stream in streams:
        if layer.name in stream.readers:
            layer = replace(layer, stream=stream.name, activation=replace(
                layer.activation, mode='per_tensor'))
        if layer.name == stream.name and layer.output is None:
            layer = replace(layer, output=OutputPlan(stream.num_bits, rectified=False,
                                                     widths=stream.widths))
    return layer
