"""How far the quantized model is from the float one: a loss that needs no labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models import DataFlow, QuantizedLayer, SteppedLayer, layer_role
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.replay import ReplayPoint, Tape, replaying
from mmbitsplit.passes.team import Team

MOST_ELEMENTS = 1 << 16  # of an output that a squared error looks at, evenly spread


class ModelLoss:
    """Compares the model's raw outputs, those of its last layers, with the float model's.

    Args:
        model: Prepared, its layers still in float.
        flow: Says which layers are last.
        batches: This process's, by number.
        run: Runs the model on a batch.
        replay_points, tape: What the quantized model is given instead of its own decisions.
        team: Who holds the other batches.
        kind: ``'cross_entropy'`` to the float model's class probabilities, for one last layer of
            class scores; ``'squared_error'``, relative to the spread of each output, for any
            model; ``'auto'``: the former where the only last layer is linear.
        most_batches: Over all processes.
        state: Told what forwards change.
    """

    def __init__(self, model: nn.Module, flow: DataFlow, batches: Mapping[int, Any],
                 run: Callable[[Any], Any], replay_points: Sequence[ReplayPoint], tape: Tape,
                 team: Team, kind: str, most_batches: int,
                 state: ForwardState):
        self.names = [name for name in flow.order if 'last' in layer_role(name, flow)]
        self.modules = [model.get_submodule(name) for name in self.names]
        if kind == 'auto':
            kind = 'cross_entropy' if len(self.names) == 1 and _is_linear(self.modules[0]) \
                else 'squared_error'
        if kind == 'cross_entropy' and len(self.names) != 1:
            raise ValueError("quantization.method.loss='cross_entropy' is for one layer of class "
                             f"scores; this model ends in {', '.join(self.names)}. Use "
                             "loss='squared_error'.")
        self.kind, self.run, self.team, self.tape = kind, run, team, tape
        self.replay_points, self.state = replay_points, state
        chosen = list(batches)[:-(-most_batches // team.size)]
        self.batches = {number: batches[number] for number in chosen}
        self.wanted: dict[int, list[tuple[int, Tensor]]] = {}

    @contextmanager
    def recording(self, current: Callable[[], int]) -> Iterator[None]:
        """Keeps the outputs of the float pass, of the batch that ``current`` names."""
        def keep(layer: int, output: Tensor) -> None:
            if current() in self.batches:
                self.wanted.setdefault(current(), []).append((layer, output.clone()))

        with self._watched(keep):
            yield

    @torch.no_grad()
    def __call__(self) -> float:
        """Runs the model as it is now; every process of the team returns the same."""
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64)
        for number in self.batches:
            for (layer, wanted), (_, output) in zip(self.wanted[number], self._outputs(number),
                                                    strict=True):
                sums[layer] += self._compare(wanted, output).cpu()
        self.team.add_(sums)
        total, extent, _ = sums.unbind(1)
        if self.kind == 'squared_error':  # of the spread about the mean
            extent = sums[:, 1] - sums[:, 2]
        return float((total / torch.where(extent > 0, extent, 1.0)).mean())

    def _outputs(self, number: int) -> list[tuple[int, Tensor]]:
        seen: list[tuple[int, Tensor]] = []
        self.tape.positions.clear()
        with self._watched(lambda layer, output: seen.append((layer, output))), \
                replaying(self.replay_points, self.tape, lambda: number), \
                self.state.watched(number):
            self.run(self.batches[number])
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

    @contextmanager
    def _watched(self, take: Callable[[int, Tensor], None]) -> Iterator[None]:
        def hook_for(layer: int):
            def hook(module, args, output):
                take(layer, self._thin(output.detach()))
            return hook

        handles = [module.register_forward_hook(hook_for(layer))
                   for layer, module in enumerate(self.modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _thin(self, output: Tensor) -> Tensor:
        if self.kind == 'cross_entropy':
            return output
        return output.flatten()[::max(1, output.numel() // MOST_ELEMENTS)]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (QuantizedLayer, SteppedLayer)):
        return module.geometry.kind == 'linear' and module.geometry.out_channels > 1
    return isinstance(module, nn.Linear) and module.out_features > 1
