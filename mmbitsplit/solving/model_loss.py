"""How far the quantized model is from the float one: a loss that needs no labels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from mmbitsplit.models import DataFlow, QuantizedLayer, SteppedLayer, last_layers
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.hooks import hooked
from mmbitsplit.passes.replay import Tape

MOST_ELEMENTS = 1 << 16  # of an output that a squared error looks at, evenly spread


class ModelLoss:
    """Compares the model's raw outputs, those of its last layers, with the float model's.

    Args:
        forwards: Of the prepared model, its layers still in float.
        flow: Says which layers are last.
        tape: What the quantized model is given instead of its own decisions.
        kind: ``'cross_entropy'`` to the float model's class probabilities, for one last layer of
            class scores; ``'squared_error'``, relative to the spread of each output, for any
            model; ``'auto'``: the former where the only last layer is linear.
        most_batches: Over all processes.
    """

    def __init__(self, forwards: Forwards, flow: DataFlow, tape: Tape, kind: str,
                 most_batches: int):
        names = last_layers(flow)
        self.forwards, self.tape = forwards, tape
        self.modules = [forwards.model.get_submodule(name) for name in names]
        if kind == 'auto':
            kind = usual_kind(self.modules)
        if kind == 'cross_entropy' and len(names) != 1:
            raise ValueError("quantization.method.loss='cross_entropy' is for one layer of class "
                             f"scores; this model ends in {', '.join(names)}. Use "
                             "loss='squared_error'.")
        self.kind = kind
        self.batches = loss_batches(forwards, most_batches)
        self.wanted: dict[int, list[tuple[int, Tensor]]] = {}

    def recording(self) -> AbstractContextManager[None]:
        """Keeps outputs of the float pass, each for the batch whose forward is running."""
        def keep(layer: int, output: Tensor) -> None:
            batch = self.forwards.state.current_batch()
            if batch in self.batches:
                self.wanted.setdefault(batch, []).append((layer, output.clone()))
        return self._watched(keep)

    @torch.no_grad()
    def __call__(self) -> float:
        """Runs the model as it is now; every process of the team returns the same."""
        sums = torch.zeros(len(self.modules), 3, dtype=torch.float64)
        for number in self.batches:
            for (layer, wanted), (_, output) in zip(self.wanted[number], self._outputs(number),
                                                    strict=True):
                sums[layer] += self._compare(wanted, output).cpu()
        self.forwards.team.add_(sums)
        total, extent, _ = sums.unbind(1)
        if self.kind == 'squared_error':  # of the spread about the mean
            extent = sums[:, 1] - sums[:, 2]
        return float((total / torch.where(extent > 0, extent, 1.0)).mean())

    def _outputs(self, number: int) -> list[tuple[int, Tensor]]:
        seen: list[tuple[int, Tensor]] = []
        self.tape.positions.clear()
        with self._watched(lambda layer, output: seen.append((layer, output))), \
                self.forwards.replaying(self.tape):
            self.forwards.alone(number)
        return seen

    def _compare(self, wanted: Tensor, output: Tensor) -> Tensor:
        """Sums: the loss, what it is divided by, and what is taken off that."""
        if self.kind == 'cross_entropy':
            loss = -(wanted.double().softmax(-1) * output.double().log_softmax(-1)).sum()
            return torch.stack([loss, loss.new_tensor(wanted[..., 0].numel()), loss * 0])
        error = (output.double() - wanted.double()).square().sum()
        square = wanted.double().square().sum()
        mean_part = wanted.double().sum().square() / max(1, wanted.numel())
        return torch.stack([error, square, mean_part])

    def _watched(self, take: Callable[[int, Tensor], None]) -> AbstractContextManager[None]:
        def hook_for(layer: int):
            def hook(module, args, output):
                take(layer, self._thin(output.detach()))
            return hook
        return hooked(enumerate(self.modules), hook_for)

    def _thin(self, output: Tensor) -> Tensor:
        if self.kind == 'cross_entropy':
            return output
        return output.flatten()[::max(1, output.numel() // MOST_ELEMENTS)]


def loss_batches(forwards: Forwards, most: int) -> list[int]:
    """Numbers of this process's batches that a loss over ``most`` batches is taken of."""
    return list(forwards.batches)[:-(-most // forwards.team.size)]


def usual_kind(modules: Sequence[nn.Module]) -> str:
    """``'cross_entropy'`` where one linear layer of class scores makes all raw outputs."""
    alone = len(modules) == 1 and _is_linear(modules[0])
    return 'cross_entropy' if alone else 'squared_error'


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (QuantizedLayer, SteppedLayer)):
        return module.geometry.kind == 'linear' and module.geometry.out_channels > 1
    return isinstance(module, nn.Linear) and module.out_features > 1
