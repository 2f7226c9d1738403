"""The quantized model as norms behind its layers see it: see ``methods.tuning.NormProblem``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmbitsplit.functional import whole_steps
from mmbitsplit.functional.norm_statistics import (
    mean_and_variance,
    output_moments,
    renormalization,
)
from mmbitsplit.models import DataFlow, PreparedModel, QuantizedLayer
from mmbitsplit.models.layers.quantizers import WeightQuantizer
from mmbitsplit.passes.call_counts import CallCounts
from mmbitsplit.passes.moments_pass import MomentsPass
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.passes.replay import ReplayPoint, patched
from mmbitsplit.solving.tuning.output_loss import OutputLoss
from mmbitsplit.solving.tuning.tuned_model import mean_loss
from mmbitsplit.structures import FoldedNorm

FLOAT_EPS = 1e-5  # of the mean variance of a layer, where no norm says one


@dataclass
class RenormalisedModel:
    """A model whose layers are scaled and shifted; every process of a team has the same numbers.

    Args:
        raw: Runs the model on this process's batches.
        prepared: The model, every layer solved.
        flow: What was seen of it.
        output_loss: With the float model's outputs.
        norms: What outputs are to have, by layer.
        calls: Of these layers, as the float model calls them.
        fit: Numbers of the batches that are not judged on, of all processes.
        held_out: Of those to judge on.
        progress: Told (layers done, layers in all).
    """

    raw: RawOutputs
    prepared: PreparedModel
    flow: DataFlow
    output_loss: OutputLoss
    norms: Mapping[str, FoldedNorm]
    calls: CallCounts
    fit: Sequence[int]
    held_out: Sequence[int]
    progress: Callable[[int, int], None] = lambda step, steps: None
    _start: dict[str, dict[str, Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.norms:
            weight = self._weight(name)
            self._start[name] = {part: None if value is None else value.detach().clone()
                                 for part, value in _parts(weight).items()}

    def loss(self, batches: Sequence[int]) -> float:
        """See ``NormProblem``."""
        return mean_loss(self.raw.forwards, batches, lambda batch: self.output_loss(
            batch, self.raw.replay(batch, len(self.output_loss.wanted[batch]))))

    def in_order(self, batches: Sequence[int], settle: Callable[[str, Tensor], None]) -> None:
        """See ``NormProblem``."""
        forwards, tape = self.raw.forwards, self.raw.tape
        tape.positions.clear()
        names = [name for name in self.prepared.layers if name in self.norms]
        MomentsPass(
            self.prepared, replace(forwards, batches=_those(forwards.batches, batches)),
            self.calls.counts, find_owners(self.flow, set(names), self.calls.patterns), tape, names,
            settle).run()
        tape.positions.clear()

    def by_batch(self, batches: Sequence[int]) -> dict[str, list[Tensor]]:
        """See ``NormProblem``."""
        forwards = self.raw.forwards
        found: dict[int, dict[str, list[Tensor]]] = {}
        for batch in _those(forwards.batches, batches):
            found[batch] = {}
            with ExitStack() as stack:
                for name in self.norms:
                    stack.enter_context(patched(
                        [ReplayPoint(self.prepared.layers[name], 'product')],
                        partial(self._normalizing, name, found[batch].setdefault(name, []))))
                self.raw.replay(batch, len(self.output_loss.wanted[batch]))
        everywhere = {batch: calls for part in forwards.team.gather(found)
                      for batch, calls in part.items()}
        return {name: [moments for batch in sorted(everywhere)
                       for moments in everywhere[batch][name]] for name in self.norms}

    def _normalizing(self, name: str, calls: list[Tensor], product: Callable) -> Callable:
        layer = self.prepared.layers[name]

        def normalized(x: Tensor) -> Tensor:
            output = product(x)
            moments = output_moments(output, layer.geometry)
            if not float(moments[0].min()):
                return output
            calls.append(moments)
            factor, shift = (_along(value.to(output), layer) for value in renormalization(
                *mean_and_variance(moments), self.norms[name]))
            return output * factor + shift
        return normalized

    @torch.no_grad()
    def scale_and_shift(self, name: str, factor: Tensor, shift: Tensor) -> None:
        """See ``NormProblem``."""
        layer, weight = self.prepared.layers[name], self._weight(name)
        factor, shift = (value.to(weight.scale.device) for value in (factor, shift))
        for part in (weight.scale, weight.offset):
            if part is not None:
                part.copy_(part.double() * factor)
        bias = shift if weight.bias is None else factor * weight.bias.double() + shift
        if layer.input_quantizer is not None and layer.input_quantizer.unit:
            bias = whole_steps(bias, weight.scale)
        if weight.bias is None:
            weight.bias = nn.Parameter(torch.zeros_like(weight.scale), requires_grad=False)
        weight.bias.copy_(bias)
        weight.refresh()

    @torch.no_grad()
    def take_back(self) -> None:
        """See ``NormProblem``."""
        for name, start in self._start.items():
            weight = self._weight(name)
            for part, value in start.items():
                if value is None:
                    setattr(weight, part, None)
                else:
                    getattr(weight, part).copy_(value)
            weight.refresh()

    def _weight(self, name: str) -> WeightQuantizer:
        """Of the width in use."""
        weight = self.prepared.layers[name].weight_quantizer
        return getattr(weight, 'active', weight)


def norms_of_float(moments: Mapping[str, Tensor]) -> dict[str, FoldedNorm]:
    """What outputs have in the float model, as if norms had given it to them.

    Args:
        moments: (3, out_channels) of its outputs, by layer.
    """
    found = {}
    for name, sums in moments.items():
        mean, variance = mean_and_variance(sums)
        found[name] = FoldedNorm(variance.sqrt(), mean, FLOAT_EPS * float(variance.mean()) or 1.0)
    return found


def _parts(weight: WeightQuantizer) -> dict[str, Tensor | None]:
    return {'scale': weight.scale, 'offset': weight.offset, 'bias': weight.bias}


def _along(values: Tensor, layer: QuantizedLayer) -> Tensor:
    """(out_channels,) values, to be broadcast to what a layer gives."""
    return values if layer.geometry.kind == 'linear' else values.view(-1, 1, 1)


def _those(batches: Mapping[int, object], numbers: Sequence[int]) -> dict[int, object]:
    return {number: batch for number, batch in batches.items() if number in numbers}
