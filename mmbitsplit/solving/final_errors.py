"""Errors of layers in the model as it stands, after they have been solved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.functional import gather_outputs
from mmbitsplit.models import QuantizedLayer, layer_input
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.float_pass import FloatRecord
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape
from mmbitsplit.solving.output_error import error_sums, relative_error


@dataclass(frozen=True)
class FinalErrors:
    """Runs the quantized model once more and compares outputs with the float pass's targets.

    Only batches with held-out positions are run, and only these positions are looked at; all where
    none are held out.

    Args:
        forwards: Of the quantized model.
        layers: By name.
        record: Of the float pass, its targets still there.
        sampler: Positions.
        tape: Decisions to replay.
    """

    forwards: Forwards
    layers: Mapping[str, QuantizedLayer]
    record: FloatRecord
    sampler: Sampler
    tape: Tape

    def measure(self) -> dict[str, float]:
        """Relative squared output error by layer, over the positions of all processes.

        A layer whose calls are other ones than in the float pass is left out.
        """
        sums = {name: torch.zeros(layer.geometry.out_channels + 3, dtype=torch.float64)
                for name, layer in self.layers.items()}
        apart = any(map(bool, self.forwards.team.gather(any(
            bool(mask.any()) for masks in self._masks().values() for mask in masks))))
        masks = self._masks() if apart else {
            key: [torch.ones(target.shape[-1], dtype=torch.bool) for target in targets]
            for key, targets in self.record.targets.items()}
        unlike: set[str] = set()
        self.tape.positions.clear()
        for batch in self.forwards.batches:
            looked_at = [name for name in self.layers
                         if any(bool(mask.any()) for mask in masks.get((name, batch), ()))]
            if looked_at:
                with self.forwards.replaying(self.tape), self._outputs(batch, looked_at) as found:
                    self.forwards.alone(batch)
                for name in looked_at:
                    if not self._add(sums[name], found[name], masks[name, batch], name, batch):
                        unlike.add(name)
        unlike = set().union(*self.forwards.team.gather(unlike))
        for total in sums.values():
            self.forwards.team.add_(total)
        return {name: relative_error(total) for name, total in sums.items() if name not in unlike}

    def _masks(self) -> dict[tuple[str, int], list[Tensor]]:
        """Which of the sampled positions are held out, by layer and batch, one a call."""
        return {(name, batch): [self.sampler.held_out(name, batch, target.shape[-1])
                                for target in targets]
                for (name, batch), targets in self.record.targets.items()}

    @contextmanager
    def _outputs(self, batch: int, names: Sequence[str],
                 ) -> Iterator[dict[str, list[tuple[tuple[int, ...], Tensor]]]]:
        """Collects, while the model runs, (input's shape, outputs at the positions) of calls."""
        found: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {name: [] for name in names}

        def hook_for(name: str):
            def hook(layer, args, kwargs, output):
                with self.forwards.state.ours.apart():
                    shape = layer_input(args, kwargs).shape
                    positions = self.sampler.positions(name, layer, len(found[name]), batch, shape)
                    found[name].append((tuple(shape), gather_outputs(
                        output.detach(), positions.to(output.device), layer.geometry)))
            return hook

        with ExitStack() as stack:
            for name in names:
                handle = self.layers[name].register_forward_hook(
                    hook_for(name), with_kwargs=True, prepend=True)
                stack.callback(handle.remove)
            yield found

    def _add(self, total: Tensor, found: Sequence[tuple[tuple[int, ...], Tensor]],
             masks: Sequence[Tensor], name: str, batch: int) -> bool:
        """Adds a batch's errors of a layer; whether its calls are those of the float pass."""
        if [shape for shape, _ in found] != self.record.shapes[name, batch]:
            return False
        bias = self.layers[name].float_weights().bias
        for (_, output), target, mask in zip(found, self.record.targets[name, batch], masks):
            y = target[..., mask.to(target.device)]
            output = output[..., mask.to(output.device)].to(y.dtype)
            if bias is not None:
                output = output - bias.detach().view(*y.shape[:2], 1)
            total += error_sums(y, y - output).to(total)
        return True
