"""What layers are given and give in the float model, at their sampled positions."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from mmbitsplit.models import PreparedModel, QuantizedLayer
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.passes.capture import CallCapture, Sampler
from mmbitsplit.passes.float_pass import check_finite, taking
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape


@dataclass
class FloatCalls:
    """All calls of a layer on this process's batches.

    Args:
        captures: Of the inputs.
        targets: (G, M, K) outputs without bias at the same positions.
    """

    captures: list[CallCapture] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def float_calls(prepared: PreparedModel, forwards: Forwards, sampler: Sampler,
                names: Iterable[str],
                progress: Callable[[int, int], None] = lambda step, steps: None,
                beside: AbstractContextManager | None = None) -> dict[str, FloatCalls]:
    """Runs every batch of this process through the float model.

    Args:
        prepared: The model, its layers in float.
        forwards: Of it.
        sampler: Positions.
        names: Of the layers to look at.
        progress: Told (batches done, batches in all).
        beside: Entered around the forwards: what else is taken from them.

    Raises:
        ValueError: An input holds NaN or infinity; names layer and image.
    """
    found = {name: FloatCalls() for name in names}
    state = forwards.state

    def take(name: str, layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        with state.ours.apart():
            calls, batch = found[name], state.current_batch()
            check_finite(name, x, forwards.labels[batch], 'float')
            number = sum(capture.batch == batch for capture in calls.captures)
            calls.targets.append(sampler.target(name, layer, number, batch, x.shape,
                                                output.to(layer.float_weights().weight.dtype)))
            calls.captures.append(sampler.capture(name, layer, number, batch, x))

    layers = {name: prepared.layers[name] for name in found}
    with taking(layers, take), streams_through(), forwards.recording(Tape()), \
            beside or nullcontext():
        for step, batch in enumerate(forwards.batches):
            forwards.alone(batch)
            progress(step + 1, len(forwards.batches))
    return found
