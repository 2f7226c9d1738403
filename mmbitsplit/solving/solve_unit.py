"""From what both branches had of a unit to the solutions of its layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.methods import Method
from mmbitsplit.methods.unit_problem import Snapshots, UnitCall, UnitCandidate, UnitProblem
from mmbitsplit.models import QuantizedLayer, apply
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantizers import ActivationQuantizer
from mmbitsplit.models.layers.streams import rounded, stream_widths, streams_through, use_stream
from mmbitsplit.passes.unit_evidence import UnitEvidence
from mmbitsplit.structures import LayerGeometry, LayerPlan, LayerSolution, Widths

LAYERS = 'layers'  # the candidate that solving layer by layer has given
GIVEN = 'nothing of it is learned: its codes are those of an embedding'
NOT_HELD_OUT = ('no images of the unit are held out: candidates are judged on those that they were '
                'fitted to')


@dataclass(frozen=True)
class UnitLayer:
    """See ``methods.unit_problem.UnitLayer``.

    Args:
        layer: The layer, solved.
        plan: Its bits and modes.
    """

    layer: QuantizedLayer
    plan: LayerPlan

    @property
    def geometry(self) -> LayerGeometry:
        """How inputs meet weights."""
        return self.layer.geometry

    @property
    def weight(self) -> Tensor:
        """The float weight."""
        return self.layer.float_weights().weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """The float bias."""
        bias = self.layer.float_weights().bias
        return None if bias is None else bias.detach()

    @property
    def weight_quantizer(self):
        """Codes, scale and bias."""
        return self.layer.weight_quantizer

    @property
    def input_quantizer(self) -> ActivationQuantizer | None:
        """Of its input."""
        return self.layer.input_quantizer

    @property
    def output_quantizer(self) -> ActivationQuantizer | None:
        """Of its output."""
        return self.layer.output_quantizer

    def solution(self) -> LayerSolution:
        """A copy of what its quantizers stand for now, soft codes made whole."""
        return self.layer.solution()

    def install(self, solution: LayerSolution) -> None:
        """Computes with a solution from now on, by quantizers made anew."""
        apply(self.layer, solution)

    def put(self, weight: Any, input: Any, output: Any) -> None:
        """Computes with these quantizers from now on."""
        self.layer.weight_quantizer = weight
        self.layer.input_quantizer, self.layer.output_quantizer = input, output


@dataclass(frozen=True)
class UnitOutcome:
    """What was taken for a unit.

    Args:
        taken: Name of the candidate.
        solutions: Its solutions by layer, as they are installed now.
        errors: Of all candidates by name: the hard output error of the unit, relative to the
            spread of the float output.
        notes: For the report.
        figures: What the method says of its candidates in numbers, by candidate and name.
        width_errors: Of several widths, ``LayerReport.width_errors``; ``error_rounding`` is that
            of the layers as they were solved one by one.
    """

    taken: str
    solutions: Mapping[str, LayerSolution]
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    width_errors: tuple[dict[str, Any], ...] = ()


def solve_unit(evidence: UnitEvidence, calls: tuple[UnitCall, ...],
               layers: Mapping[str, UnitLayer], method: Method, *,
               products: Sequence[Product] = (), streams: Sequence[nn.Module] = (),
               importance: Tensor | None = None, widths: tuple[Widths, ...] = (),
               progress: Callable[[int, int], None] = lambda step, steps: None,
               snapshots: Snapshots | None = None) -> UnitOutcome:
    """Lets a method improve a unit whose layers are solved; the least hard error wins.

    Args:
        evidence: How the unit is run, and why it may have no calls.
        calls: Of all processes.
        layers: Of the unit, solved.
        method: One that solves units.
        products: Of activations inside the unit, solved.
        streams: Modules of the unit that give rounded residual streams.
        importance, widths, progress, snapshots: See ``UnitProblem``.

    Raises:
        ValueError: The method's candidates have one name twice, or leave out a layer.
    """
    unit = evidence.function.unit
    solved = {name: layer.solution() for name, layer in layers.items()}
    given = [name for name, layer in layers.items() if layer.plan.codes_of]
    if given:  # a unit of one layer
        return UnitOutcome(LAYERS, solved, notes=(GIVEN,))
    if evidence.problem or not calls:
        return UnitOutcome(LAYERS, solved, notes=(
            f"solved layer by layer alone: unit '{unit.name}' "
            + (evidence.problem or 'has no inputs and outputs that could be kept'),))
    fit, judge = _apart(calls)

    def use_others(one: Widths) -> None:
        use_widths(products, one)
        use_streams(streams, one)

    def use(one: Widths) -> None:
        use_widths((layer.layer for layer in layers.values()), one)
        use_others(one)

    problem = UnitProblem(unit=unit, fit=fit, judge=judge, layers=layers, run=evidence.run,
                          seed=evidence.what.seed, importance=importance, progress=progress,
                          snapshots=snapshots or Snapshots(), streams=_streams, widths=widths,
                          use=use, use_others=use_others)
    candidates = {LAYERS: solved}
    at_widths: dict[str, list[float]] = {}
    try:
        at_widths[LAYERS] = problem.errors(judge)
        with torch.enable_grad():
            found = _named(method, unit.layers, method.solve_unit(problem))
        for name, candidate in found.items():
            install(layers, candidate.solutions)
            candidates[name], at_widths[name] = candidate.solutions, problem.errors(judge)
    finally:
        install(layers, solved)
        if widths:
            use_others(widths[-1])
    errors = {name: sum(found) / len(found) for name, found in at_widths.items()}
    numbers = {name: error for name, error in errors.items() if error == error}
    taken = next((name for name, candidate in found.items() if candidate.always),
                 min(numbers, key=numbers.__getitem__, default=LAYERS))
    install(layers, candidates[taken])
    notes = tuple(f'{name}: {note}' for name, candidate in found.items()
                  for note in candidate.notes)
    return UnitOutcome(taken, candidates[taken], errors,
                       notes + (() if fit is not judge else (NOT_HELD_OUT,)),
                       {name: dict(candidate.figures) for name, candidate in found.items()
                        if candidate.figures},
                       _width_errors(widths, at_widths[taken], at_widths[LAYERS]))


def _width_errors(widths: Iterable[Widths], taken: Iterable[float], before: Iterable[float],
                  ) -> tuple[dict[str, Any], ...]:
    return tuple({'weight_bits': one.weight, 'activation_bits': one.activation, 'error': error,
                  'error_rounding': start, 'of': 'unit'}
                 for one, error, start in zip(widths, taken, before))


def install(layers: Mapping[str, UnitLayer], solutions: Mapping[str, LayerSolution]) -> None:
    """Writes solutions into the layers of a unit."""
    for name, layer in layers.items():
        layer.install(solutions[name])


def use_widths(sites: Iterable[QuantizedLayer | Product], widths: Widths) -> None:
    """Switches the layers and products that have these widths; what has one alone stays as it
    is."""
    for layer in sites:
        if not layer.quantized:
            continue
        if isinstance(layer, Product):
            layer.use(**{side: widths.activation for side, quantizer in layer.quantizers().items()
                         if quantizer is not None and widths.activation in quantizer.widths})
            continue
        inputs = layer.input_quantizer
        layer.use(
            weight=widths.weight if widths.weight in layer.weight_quantizer.widths else None,
            input=widths.activation if inputs is not None
            and widths.activation in inputs.widths else None)


def use_streams(modules: Iterable[nn.Module], widths: Widths) -> None:
    """Switches the residual streams that have the width of these inputs."""
    for module in modules:
        if widths.activation is not None and widths.activation in stream_widths(module)[0]:
            use_stream(module, widths.activation)


def _streams(choose: Callable[[Tensor, Callable[[], Tensor]], Tensor]) -> AbstractContextManager:
    """See ``UnitProblem.streams``."""
    return streams_through(lambda module, x: choose(rounded(module, x), lambda: x))


def _apart(calls: tuple[UnitCall, ...]) -> tuple[tuple[UnitCall, ...], tuple[UnitCall, ...]]:
    """Calls to fit to and calls to judge on; all twice where none are apart."""
    fit = tuple(call for call in calls if not call.held_out)
    judge = tuple(call for call in calls if call.held_out)
    return (fit, judge) if fit and judge else (calls, calls)


def _named(method: Method, layers: Iterable[str], found: Iterable[UnitCandidate],
           ) -> dict[str, UnitCandidate]:
    named: dict[str, UnitCandidate] = {}
    for candidate in found:
        missing = set(layers) - set(candidate.solutions)
        if candidate.name in named or candidate.name == LAYERS or missing:
            raise ValueError(
                f"{type(method).__name__}.solve_unit yields a candidate '{candidate.name}' "
                + (f"without a solution for layer '{min(missing)}'; each candidate solves all "
                   'layers of the unit.' if missing else 'a second time; names must be their own, '
                   f"and '{LAYERS}' is what solving layer by layer gave."))
        named[candidate.name] = candidate
    return named
