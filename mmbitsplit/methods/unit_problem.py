"""What a method is given that improves a whole unit, and what it gives back.

The unit's layers have been solved one after another before. A method changes their quantizers,
runs the unit with ``forward`` (gradients pass), and returns candidates; whoever asked it judges
them by the hard error of the unit's output on images that were held out.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mmbitsplit.functional import code_positions, in_steps, whole_steps
from mmbitsplit.structures import LayerGeometry, LayerPlan, LayerSolution, Unit, Widths


@dataclass(frozen=True, kw_only=True)
class UnitCall:
    """One call of a unit in both models; whole maps, or crops of them.

    Args:
        batch: Number of the batch, over all processes.
        float_input: What the float model gives the unit, (B, ...) or crops (P, C, H, W).
        quantized_input: What the quantized model gives it, of the same shape and place.
        float_output: What the float unit makes of ``float_input``: of crops, the part that
            nothing outside of them reaches.
        held_out: Whether it is there to judge on; nothing is fitted to it.
        number: Of the call among those of its batch: the level, of a head called once a level.
        width_inputs: What the quantized model gives the unit at each of ``UnitProblem.widths``,
            like ``quantized_input``; none where it has no others.
    """

    batch: int
    float_input: Tensor
    quantized_input: Tensor
    float_output: Tensor
    held_out: bool
    number: int = 0
    width_inputs: tuple[Tensor, ...] = ()


class UnitLayer(Protocol):
    """A layer of a unit as it stands in the model.

    Attributes:
        plan: Its bits and modes.
        geometry: How inputs meet weights.
        weight: The float weight, as torch stores it for this kind.
        bias: (out_channels,) of the float layer, or ``None``.
        weight_quantizer: Codes, scale and bias, which may require gradients or be changed; see
            ``models.layers.quantizers``.
        input_quantizer: Of its input, ``None`` for a float one.
        output_quantizer: Of its output, ``None`` for a float one.
    """

    plan: LayerPlan
    weight: Tensor
    bias: Tensor | None

    @property
    def geometry(self) -> LayerGeometry:
        """How inputs meet weights."""

    @property
    def weight_quantizer(self) -> Any:
        """Codes, scale and bias."""

    @property
    def input_quantizer(self) -> Any:
        """Of its input."""

    @property
    def output_quantizer(self) -> Any:
        """Of its output."""

    def solution(self) -> LayerSolution:
        """A copy of what its quantizers stand for now, soft codes made whole."""

    def install(self, solution: LayerSolution) -> None:
        """Computes with a solution from now on, by quantizers made anew."""

    def put(self, weight: Any, input: Any, output: Any) -> None:
        """Computes with these quantizers from now on, which it or ``install`` has made."""


class Snapshots:
    """Where a method keeps how far it is, so that a process that is killed goes on from there.

    This one keeps nothing. A state is a dict of numbers, strings, tensors, lists and dicts of
    them; it comes back with its tensors on the CPU. There is one for a unit: a method that learns
    several times says in it which time it is at.
    """

    def load(self) -> dict[str, Any] | None:
        """Returns the state that was kept last of this unit, ``None`` where there is none."""
        return None

    def due(self) -> bool:
        """Whether ``save`` would keep a state now; asked before one is put together."""
        return False

    def save(self, state: dict[str, Any]) -> None:
        """Keeps a state if it is time to; called as often as one likes."""


@dataclass(frozen=True, kw_only=True)
class UnitProblem:
    """A unit whose layers are solved, and what it is to come near to.

    Args:
        unit: Its modules and layers.
        fit: Calls to fit to.
        judge: Calls that were held out; those of ``fit`` where there are too few.
        layers: By name, in execution order.
        run: Computes the unit as it stands on inputs like those of the calls.
        seed: Of the calibration.
        widths: That the unit is run at, rising, where the model can be switched; none where it has
            one width. ``quantized_input`` of calls is that of the widest.
        use: Switches the unit's layers, products and residual streams to one of these.
        use_others: Switches its products of activations and streams alone, for a method that
            switches layers in its own way.
        importance: (C,) of the channels of the unit's output, ``None`` where all count alike.
        streams: Inside, residual streams of the unit carry what a function makes of what they
            would carry, and of a function that gives the same in float.
        progress: Told (steps done, steps in all).
        snapshots: Keeps how far a method is.
    """

    unit: Unit
    fit: tuple[UnitCall, ...]
    judge: tuple[UnitCall, ...]
    layers: Mapping[str, UnitLayer]
    run: Callable[[Tensor], Tensor]
    seed: int = 0
    widths: tuple[Widths, ...] = ()
    use: Callable[[Widths], None] = lambda widths: None
    use_others: Callable[[Widths], None] = lambda widths: None
    importance: Tensor | None = None
    streams: Callable[[Callable[[Tensor, Callable[[], Tensor]], Tensor]],
                      AbstractContextManager] = lambda choose: nullcontext()
    progress: Callable[[int, int], None] = lambda step, steps: None
    snapshots: Snapshots = field(default_factory=Snapshots)

    def forward(self, x: Tensor) -> Tensor:
        """The unit with its quantizers as they are: the part that is compared.

        Args:
            x: Inputs like those of a call, some or all of its images or crops; left unchanged.
        """
        return self.run(x)

    def generator(self, step: int) -> torch.Generator:
        """Random numbers of a step: the same again for the same seed, unit and step."""
        digest = hashlib.blake2b(repr((self.seed, self.unit.name, step)).encode(), digest_size=7)
        return torch.Generator().manual_seed(int.from_bytes(digest.digest(), 'little'))

    def as_read(self, output: Tensor) -> Tensor:
        """What others see of an output of the unit: its positive part, where all that read it do
        so through a ReLU."""
        last = self.layers.get(self.unit.modules[-1])
        return output.relu() if last is not None and last.plan.rectified else output

    @torch.no_grad()
    def error(self, calls: Sequence[UnitCall]) -> float:
        """Squared error of the unit's outputs as they are read, relative to the spread of the float
        outputs; of several widths the mean, each on the inputs of that width."""
        errors = self.errors(calls)
        return sum(errors) / len(errors)

    @torch.no_grad()
    def errors(self, calls: Sequence[UnitCall]) -> list[float]:
        """The error at each of the widths, afterwards the widest is in use; one of one width."""
        if not self.widths:
            return [self._error(calls, lambda call: call.quantized_input)]
        found = []
        for index, widths in enumerate(self.widths):
            self.use(widths)
            found.append(self._error(
                calls, lambda call: call.width_inputs[index]))  # noqa: B023  (called at once)
        return found

    def _error(self, calls: Sequence[UnitCall], given: Callable[[UnitCall], Tensor]) -> float:
        total = square = plain = count = 0.0
        for call in calls:
            wanted = self.as_read(call.float_output).double()
            output = self.as_read(self.forward(given(call)))
            total += float((output.double() - wanted).square().sum())
            square += float(wanted.square().sum())
            plain += float(wanted.sum())
            count += wanted.numel()
        return total / spread(square, plain, count)

    def solutions(self) -> dict[str, LayerSolution]:
        """Copies of what the quantizers of all layers stand for now."""
        return {name: layer.solution() for name, layer in self.layers.items()}

    def candidate(self, name: str, notes: tuple[str, ...] = (),
                  figures: Mapping[str, float] | None = None) -> 'UnitCandidate':
        """A candidate of what the quantizers stand for now, biases in whole steps where inputs are:
        those that were learned, or whose scales were, no longer are."""
        return UnitCandidate(name, {layer: _with_whole_bias(solution) for layer, solution
                                    in self.solutions().items()}, notes, figures or {})


@dataclass(frozen=True)
class UnitCandidate:
    """Solutions for all layers of a unit.

    Args:
        name: What it is called in the report.
        solutions: By layer, hard.
        notes: How it came about, for the report, whether it is taken or not.
        figures: The same in numbers, by name.
        always: It is taken whatever its error, for comparisons; the first of such candidates is.
    """

    name: str
    solutions: Mapping[str, LayerSolution]
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    always: bool = False


def positions(layer: UnitLayer) -> Tensor:
    """Where each weight would be without rounding, in steps of its codes; shape of the weight."""
    offset = layer.weight_quantizer.offset
    return code_positions(layer.weight, layer.geometry, *_scales(layer),
                          None if offset is None else offset.detach())


def steps_of(layer: UnitLayer) -> Tensor:
    """Code steps a real unit of each weight; shape of the weight."""
    return in_steps(torch.ones_like(layer.weight), layer.geometry, *_scales(layer))


def _scales(layer: UnitLayer) -> tuple[Tensor, Tensor | None]:
    """Of the weight, and of the input where the weight's holds it."""
    inputs = None if layer.input_quantizer is None else layer.input_quantizer.qparams
    return (layer.weight_quantizer.scale.detach(),
            inputs.scale.detach() if inputs is not None and inputs.unit else None)


def _with_whole_bias(solution: LayerSolution) -> LayerSolution:
    if solution.bias is None or solution.qparams is None or not solution.qparams.unit:
        return solution
    return replace(solution, bias=whole_steps(solution.bias, solution.weight_scale))


def spread(square: float, total: float, count: float) -> float:
    """What errors of outputs are told in parts of: their squares about the mean.

    Args:
        square: Sum of the squares.
        total: Sum of the outputs.
        count: How many they are.

    Returns:
        Their squares where they are constant up to round-off, 1 where they are zero.
    """
    about_mean = square - total * total / max(1.0, count)
    return about_mean if about_mean > 1e-10 * square else square or 1.0
