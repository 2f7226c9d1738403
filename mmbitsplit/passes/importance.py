"""How much outputs of layers and units matter: squared gradients of the model's raw outputs.

Errors e of a layer's output change the raw outputs by about J e, J the derivative of these, and
the loss of the whole model by e^T J^T H J e, H its curvature at the float model's raw outputs:
the identity for squared errors, diag(p) - p p^T for the divergence of class probabilities p. Of
random vectors v with covariance H (``functional.probe_vectors``), the squares of the gradients of
v . (raw outputs) have the diagonal of J^T H J for their mean. No labels are needed; a probe is one
backward through the float model.

Source: M. F. Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1990, for
the probes; Y. Li et al., *BRECQ*, ICLR 2021, section 3.2, for squared gradients as weights.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from mmbitsplit.functional import channel_dim
from mmbitsplit.functional.patches import output_channel_dim
from mmbitsplit.functional.probe_vectors import (
    confidence,
    of_divergence,
    of_squared_error,
    place_of,
    signs,
)
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.hooks import hooked
from mmbitsplit.passes.sampling import generator_of
from mmbitsplit.passes.with_gradients import INSTEAD, NoGradients, gradients_kept
from mmbitsplit.structures import Unit

PROBES = 3  # backwards an image

# By layer, one a call: squared gradients at its output positions (``functional.output_size``),
# summed over channels.
Maps = dict[str, list[Tensor]]


@dataclass
class Importance:
    """What the pass leaves behind, the same in every process.

    Args:
        channels: By unit, (C,) float64 mean squared gradients of its output's channels over images
            and positions, in parts of their mean over channels; ones where no gradient reaches
            it. None of units whose output is no tensor.
        unreached: Layers that no gradient reaches on any image.
        energies: By layer, (out_channels,) float64: what the loss of a batch rises by for each
            unit of the mean squared error of a channel's outputs, to first order in these, as if
            errors at different places had nothing to do with each other.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    unreached: frozenset[str] = frozenset()
    energies: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImportancePass:
    """Runs every batch forward through the float model and a few times backward.

    Args:
        prepared: The model, its layers still in float.
        forwards: Of it.
        last: Names of the layers that make the raw outputs.
        kind: Of the loss: ``'squared_error'`` or ``'cross_entropy'``, as of ``ModelLoss``, or
            ``'confidence'``: squared errors of what a dense head says where it is sure.
        seed: Of the probes.
        units: Whose channels are looked at.
        rows: Layers whose positions are looked at.
        energies: Layers whose energies are asked for.
        take: Given a batch and its maps.
        probes: Backwards a batch.
    """

    prepared: PreparedModel
    forwards: Forwards
    last: Sequence[str]
    kind: str
    seed: int
    units: Sequence[Unit] = ()
    rows: frozenset[str] = frozenset()
    energies: frozenset[str] = frozenset()
    take: Callable[[int, Maps], None] = lambda batch, maps: None
    probes: int = PROBES

    def run(self, progress: Callable[[int, int], None]) -> Importance:
        """Runs all batches of this process.

        Args:
            progress: Told (batches done, batches in all).

        Raises:
            ValueError: The model cannot be run with gradients, none reach any layer, or they are
                not finite; says on which image.
        """
        sums: dict[int, dict[str, Tensor]] = {}
        energies: dict[int, dict[str, Tensor]] = {}
        reached: set[str] = set()
        for step, batch in enumerate(self.forwards.batches):
            found = self._gradients(batch)
            self.take(batch, found.maps)
            reached |= found.reached
            sums[batch], energies[batch] = found.channels, found.energies
            progress(step + 1, len(self.forwards.batches))
        reached = set().union(*self.forwards.team.gather(reached))
        if not reached:
            raise ValueError(
                "No gradient of the float model's raw outputs reaches any layer: a step between "
                f'detaches them, or they are computed in inference mode. {INSTEAD}')
        channels = {name: total / total.mean() if bool(total.any()) else torch.ones_like(total)
                    for name, total in self._totals(sums).items()}
        return Importance(channels, frozenset(self.prepared.layers.keys() - reached),
                          {name: total / self.forwards.total
                           for name, total in self._totals(energies).items()})

    def _gradients(self, batch: int) -> '_Gradients':
        try:
            return self._once(batch, again=False)
        except RuntimeError as error:
            # Saved values that are changed afterwards are copied then, at some cost.
            if 'modified by an inplace operation' not in str(error):
                raise self._refusal(batch, error) from error
        try:
            return self._once(batch, again=True)
        except RuntimeError as error:
            raise self._refusal(batch, error) from error

    def _refusal(self, batch: int, error: RuntimeError) -> ValueError:
        return ValueError(
            f'The float model cannot be run with gradients on {self.forwards.labels[batch]}, which '
            f'importance is found by: {error} {INSTEAD}')

    def _once(self, batch: int, again: bool) -> '_Gradients':
        found, forwards = _Gradients(self), self.forwards
        with forwards.state.watched(batch), \
                allow_mutation_on_saved_tensors() if again else nullcontext():
            with found.watched(), gradients_kept(forwards.model, forwards.replay_points):
                forwards.run(batch)
            for probe in range(self.probes):
                found.backward(generator_of((self.seed, 'probe', batch, probe)),
                               last=probe + 1 == self.probes)
        found.check(forwards.labels[batch])
        return found

    def _totals(self, sums: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches of all processes, of what each batch has by name."""
        everyone = {batch: found for part in self.forwards.team.gather(dict(sums))
                    for batch, found in part.items()}
        totals: dict[str, Tensor] = {}
        for batch in sorted(everyone):  # in one order, whoever has them
            for name, values in everyone[batch].items():
                totals[name] = totals[name] + values if name in totals else values
        return totals


class _Gradients:
    """The graph of one batch, and what comes out of it.

    Args:
        of: The pass.

    Attributes:
        maps: See ``Maps``.
        channels: By unit, (C,) squared gradients, mean over positions, summed over calls.
        energies: By layer, (C,) squared gradients, mean over probes, summed over positions and
            calls: of the loss.
        reached: Layers whose outputs a gradient reaches.
    """

    def __init__(self, of: ImportancePass):
        self.of = of
        self.maps: Maps = {}
        self.channels: dict[str, Tensor] = {}
        self.energies: dict[str, Tensor] = {}
        self._share = 1.0  # of a squared gradient in the loss
        self.reached: set[str] = set()
        self._anchors: dict[torch.device, Tensor] = {}
        self._raw: dict[str, list[Tensor]] = {}
        layers = of.prepared.layers
        self._ends = {unit.modules[-1]: unit for unit in of.units}
        model = of.prepared.model
        # One hook for all that a module is: what it gives is replaced by what gradients reach.
        self._modules: dict[nn.Module, dict[str, str]] = {}
        for kind, named in (
                ('layer', layers),
                ('last', {name: model.get_submodule(name) for name in of.last}),
                ('unit', {name: model.get_submodule(name) for name in self._ends})):
            for name, module in named.items():
                self._modules.setdefault(module, {})[kind] = name

    def watched(self) -> AbstractContextManager[None]:
        """Around a forward: notes the outputs whose gradients are looked at."""
        return hooked(((names, module) for module, names in self._modules.items()), self._hook,
                      prepend=True)

    def backward(self, generator: torch.Generator, last: bool) -> None:
        """One probe.

        Args:
            generator: Draws it.
            last: Whether the graph may go.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        self._share = self._loss_share() / self.of.probes
        sure = confidence([output.detach() for outputs in self._raw.values() for output in outputs]
                          ) if self.of.kind == 'confidence' else {}
        for outputs in self._raw.values():
            values = [output.detach() for output in outputs]
            if self.of.kind == 'cross_entropy':
                vectors = [of_divergence(value, generator) for value in values]
            elif self.of.kind == 'confidence':
                vectors = [signs(value, generator) * sure[place_of(value)] for value in values]
            else:
                vectors = of_squared_error(values, generator)
            pairs += zip(outputs, vectors)
        if pairs:
            ends, starts = zip(*pairs)
            # To the anchors alone: what else requires gradients is left as it is.
            torch.autograd.backward(ends, starts, inputs=[*self._anchors.values()],
                                    retain_graph=not last)
        if last:
            self._raw.clear()
            self._anchors.clear()

    def _loss_share(self) -> float:
        """Divergences are half a square, the mean over rows; squared errors the mean of layers."""
        if self.of.kind == 'cross_entropy':
            return 0.5 / max(1, sum(output[..., 0].numel() for outputs in self._raw.values()
                                    for output in outputs))
        return 1.0 / max(1, len(self._raw))

    def check(self, label: str) -> None:
        """Raises ``ValueError`` for gradients that are not finite."""
        for name, calls in self.maps.items():
            found = [*calls, self.energies[name]] if name in self.energies else calls
            if not all(bool(torch.isfinite(one).all()) for one in found):
                raise ValueError(f"Gradients of the float model's raw outputs at layer '{name}' "
                                 f'are NaN or infinite on {label}. {INSTEAD}')

    def _hook(self, names: Mapping[str, str]) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            given = output
            if not output.requires_grad:
                output = output + self._anchor(output.device)
            if not output.requires_grad:  # inference mode
                raise NoGradients(f"layer '{[*names.values()][0]}' is called in inference mode, "
                                  'where torch keeps none.')
            with self.of.forwards.state.ours.apart():
                self._note(names, module, output)
            return None if output is given else output
        return hook

    def _note(self, names: Mapping[str, str], module: Any, output: Tensor) -> None:
        # Hooks of tensors: what comes after may change them in place, and these are of before.
        if 'last' in names:
            with torch.enable_grad():
                self._raw.setdefault(names['last'], []).append(output.clone())
        if 'layer' in names:
            name, dim = names['layer'], channel_dim(module.geometry)
            calls = self.maps.setdefault(name, [])
            if name in self.of.rows:
                calls.append(output.new_zeros(output.select(dim, 0).numel(), dtype=torch.float32))
            output.register_hook(self._at_positions(name, len(calls) - 1, dim))
            if name in self.of.energies:
                self.energies.setdefault(name, torch.zeros(output.shape[dim], dtype=torch.float64))
                output.register_hook(self._at_outputs(name, dim))
        if 'unit' in names:
            unit = self._ends[names['unit']]
            geometry = self.of.prepared.layers[unit.layers[-1]].geometry
            dim = output_channel_dim(output.shape, geometry)
            self.channels.setdefault(unit.name, torch.zeros(output.shape[dim], dtype=torch.float64))
            output.register_hook(self._at_channels(unit.name, dim))

    def _at_positions(self, name: str, call: int, dim: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self.reached.add(name)
            if name in self.of.rows:
                self.maps[name][call] += gradient.float().square().sum(dim).flatten()
        return hook

    def _at_outputs(self, name: str, dim: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            squares = gradient.double().square().movedim(dim, 0).flatten(1)
            self.energies[name] += self._share * squares.sum(1).cpu()
        return hook

    def _at_channels(self, unit: str, dim: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            squares = gradient.double().square().movedim(dim, 0).flatten(1)
            self.channels[unit] += squares.sum(1).cpu() / max(1, squares.shape[1])
        return hook

    def _anchor(self, device: torch.device) -> Tensor:
        """Zero that requires gradients, and all that is added to it with it."""
        if device not in self._anchors:
            self._anchors[device] = torch.zeros((), device=device, requires_grad=True)
        return self._anchors[device]
