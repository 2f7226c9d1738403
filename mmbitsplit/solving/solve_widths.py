"""From what was captured of a layer at several widths to its solution for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmbitsplit.functional import channel_ranges, midrise_offset, round_nested
from mmbitsplit.functional.stored_widths import scale_as_stored, solution_as_stored
from mmbitsplit.methods import Method
from mmbitsplit.methods.unit_learning_widths import one_width
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.width_lockstep import Prefix
from mmbitsplit.solving.candidates import ROUNDING, share_of_outputs, whole_solution
from mmbitsplit.solving.input_scales import Candidate
from mmbitsplit.solving.output_error import Judgement, output_error
from mmbitsplit.solving.output_scales import at_widths, search_output_qparams
from mmbitsplit.solving.positions import LayerPositions, Rows
from mmbitsplit.solving.solve_layer import (
    FITTED_AND_JUDGED,
    Solved,
    fit_and_held_out,
    layer_solution,
)
from mmbitsplit.solving.width_inputs import choose_inputs
from mmbitsplit.structures import (
    LayerGeometry,
    LayerPlan,
    LayerSolution,
    LayerStatistics,
    QParams,
    RowStatistics,
    WeightSolution,
    Widths,
)

ALIKE_BITS = 6  # of inputs, which sums are alike from
TOO_LARGE = ('its weights are rounded: it has too many inputs for sums of products, which codes of '
             'several widths are solved from')


@dataclass(frozen=True, kw_only=True)
class _AtWidth:
    """What the weight of one width is fitted to.

    Args:
        bits: Of the weight.
        input: How its input is quantized.
        statistics: To fit to.
        held_out: To judge on.
        weight: (G, M, N) float weight on the scale of the inputs.
    """

    bits: int
    input: Candidate
    statistics: LayerStatistics | RowStatistics
    held_out: Rows
    weight: Tensor


def solve_widths(layer: QuantizedLayer, plan: LayerPlan, method: Method, pairs: Sequence[Prefix],
                 captures: Sequence[Sequence[CallCapture]], targets: Sequence[Tensor],
                 team: Team | None = None, stopwatch: Stopwatch | None = None,
                 shared: Sequence[QParams] = ()) -> Solved:
    """Quantizes one layer for several widths; every process of the team returns the same.

    Args:
        layer: In float.
        plan: Its ``widths``, or ``input_widths``, are several.
        method: Chooses the codes.
        pairs: Widths of weight and input that are solved together: each width at least once.
        captures: Of each pair, every call in the model whose layers before have these widths, this
            process's.
        targets: Float outputs (G, M, K) of the same calls at the same positions.
        team, stopwatch: See ``solve_layer``.
        shared: See ``choose_inputs``.
    """
    team, stopwatch = team or Team(), stopwatch or Stopwatch()
    geometry, weight = layer.geometry, layer.float_rows()
    positions = {id(one): LayerPositions(one, targets, team, weight) for one in captures}
    rows = [positions[id(one)] for one in captures]
    own_inputs = [pair.input if plan.input_widths else plan.activation.num_bits for pair in pairs]
    with stopwatch('solve_scales'):
        inputs, samples = choose_inputs(captures, rows, own_inputs, layer, plan, method, shared)
        widest = inputs[max(range(len(pairs)), key=lambda index: own_inputs[index] or 0)]
        ranges = channel_ranges(samples, widest.qparams)
        del samples
    widths = plan.widths or (plan.weight.num_bits,)
    with stopwatch('solve_statistics'):
        found, apart, of, parts = [], True, None, None
        for bits in reversed(widths):
            index = next((index for index, pair in enumerate(pairs) if pair.weight == bits),
                         len(pairs) - 1)
            known = None
            if rows[index] is of:  # widths that share a branch come one after another
                known = found[-1]
            else:
                parts = None  # before others are made
                of, parts = rows[index], rows[index].split()
            one = inputs[index]
            if known is not None and _alike(known, one):
                statistics, held_out = _as_of(known, one, parts[1], geometry)
            else:
                statistics, held_out, apart = fit_and_held_out(of, one, geometry, method, parts)
            found.append(_AtWidth(
                bits=bits, input=one, statistics=statistics, held_out=held_out,
                weight=one.weight(weight, geometry).to(statistics.x_sum.dtype)))
        found.reverse()
        del parts
    with stopwatch('solve_codes'):
        choice = _choose(found, method, team)
    solution = _assemble(found, choice, layer, plan, widest, inputs, geometry, method)
    if plan.output is not None:
        with stopwatch('solve_scales'):
            solution = _with_output(solution, plan, pairs, inputs, captures, geometry, team)
    calls, sampled = map(sum, zip(*team.gather(
        (len(captures[-1]), sum(capture.patches.shape[-1] for capture in captures[-1])))))
    return team.from_first(Solved(
        solution=solution,
        strength=widest.strength, search=widest.search, error=choice.judged[-1].error,
        error_rounding=choice.rounded[-1].error, guard_taken=choice.guard_taken,
        candidates=choice.errors(found, method), sweeps=choice.solution.num_sweeps, rows=sampled,
        calls=calls, input_ranges=ranges, notes=(
            *(() if apart else FITTED_AND_JUDGED), *choice.notes(found)),
        width_errors=choice.width_errors(found)))


def _alike(known: _AtWidth, other: Candidate) -> bool:
    """Whether sums of a width's inputs stand for those of the same inputs at another: where both
    are one pattern of scales with so many bits that rounding is little beside the ridge."""
    if other is known.input:
        return True
    one, two = known.input.qparams, other.qparams
    return isinstance(known.statistics, LayerStatistics) and one is not None and two is not None \
        and one.unit and two.unit and min(one.num_bits, two.num_bits) >= ALIKE_BITS


def _as_of(known: _AtWidth, other: Candidate, held_out: Rows, geometry: LayerGeometry,
           ) -> tuple[LayerStatistics | RowStatistics, Rows]:
    """Sums of a width on the scale of another, and the positions to judge on as that rounds them.
    """
    if other is known.input:
        return known.statistics, known.held_out
    assert isinstance(known.statistics, LayerStatistics)
    steps = _factor(known.input.qparams, other.qparams)
    sums = replace(known.statistics, gram=known.statistics.gram * steps ** 2,
                   cross=known.statistics.cross * steps, x_sum=known.statistics.x_sum * steps)
    return sums, replace(held_out, x=other.inputs(held_out.x, geometry))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The solution that was taken.

    Args:
        solution: Of the widest, with the others.
        judged: A width.
        rounded: The same of plain rounding.
        solved: The same of what the method gave.
        guard_taken: Whether rounding was taken.
    """

    solution: WeightSolution
    judged: Sequence[Judgement]
    rounded: Sequence[Judgement]
    solved: Sequence[Judgement]
    guard_taken: bool

    def of(self, bits: int) -> WeightSolution:
        """Of one width."""
        return self.solution.narrower.get(bits, self.solution)

    def errors(self, found: Sequence[_AtWidth], method: Method) -> dict[str, float]:
        """Of every candidate and width."""
        named = {'solver': self.solved, **({ROUNDING: self.rounded} if method.guard else {})}
        return {f'{name}, {one.bits} bits': judged.error for name, judgements in named.items()
                for one, judged in zip(found, judgements)}

    def width_errors(self, found: Sequence[_AtWidth]) -> tuple[dict[str, Any], ...]:
        """As ``LayerReport`` has them."""
        return tuple({
            'weight_bits': one.bits,
            'activation_bits': None if one.input.qparams is None else one.input.qparams.num_bits,
            'error': judged.error, 'error_rounding': rounded.error, 'of': 'layer'}
            for one, judged, rounded in zip(found, self.judged, self.rounded))

    def notes(self, found: Sequence[_AtWidth]) -> list[str]:
        """What the report says of each width."""
        return [*(TOO_LARGE,) * _too_large(found), *(
            f'error at {one.bits} bits {judged.error:.4g} (rounding {rounded.error:.4g})'
            for one, judged, rounded in zip(found, self.judged, self.rounded))]


def _choose(found: Sequence[_AtWidth], method: Method, team: Team) -> _Choice:
    """The method's solution, or rounding where that has less error over all widths.

    Codes are one for all widths, so one of the two is taken for all: rounding where the product of
    its errors is less.
    """
    widths = [one.bits for one in found]
    weights = [one.weight for one in found]
    rounded = round_nested(weights, widths, method.nesting or 'planes')
    solved = rounded
    if not _too_large(found):
        share = share_of_outputs(weights[0].shape[1], team)
        solved = whole_solution(method.solve_widths(
            [_part(one.statistics, share) for one in found],
            [weight[:, share] for weight in weights], widths), share, team)
    solved, rounded = (_stored_scales(one, found) for one in (solved, rounded))
    judged, plain = ([output_error(solution.narrower.get(one.bits, solution).weight,
                                   one.statistics, one.held_out.x, one.held_out.y, method, team)
                      for one in found] for solution in (solved, rounded))
    guard = method.guard and rounding_is_better(judged, plain)
    return _Choice(solution=rounded if guard else solved, judged=plain if guard else judged,
                   rounded=plain, solved=judged, guard_taken=guard)


def _stored_scales(solution: WeightSolution, found: Sequence[_AtWidth]) -> WeightSolution:
    """Narrower widths with the scales that a file will give back, before they are judged."""
    inputs = {one.bits: one.input.qparams for one in found}
    widest, narrower = max(inputs), {}
    for bits, one in solution.narrower.items():
        factor = _factor(inputs[bits], inputs[widest])
        scale = factor * scale_as_stored((one.scale / factor).float(), solution.scale.float(),
                                         widest - bits, bits).to(one.scale)
        narrower[bits] = replace(one, scale=scale, offset=None if one.offset is None
                                 else midrise_offset(scale))
    return replace(solution, narrower=narrower)


def _too_large(found: Sequence[_AtWidth]) -> bool:
    return any(isinstance(one.statistics, RowStatistics) for one in found)


def _part(statistics: LayerStatistics, share: slice) -> LayerStatistics:
    return replace(statistics, **{name: getattr(statistics, name)[:, share]
                                  for name in ('y_sum', 'cross', 'y_sq')})


def rounding_is_better(judged: Sequence[Judgement], rounded: Sequence[Judgement]) -> bool:
    """Whether errors of rounding, one a width, add up to less; or others are NaN.

    What a wide width loses by sharing its codes is little beside what a narrow one loses by
    rounding; compared by their factors the former would hide the latter.
    """
    return not sum(one.error for one in judged) <= sum(one.error for one in rounded)


def _assemble(found: Sequence[_AtWidth], choice: _Choice, layer: QuantizedLayer, plan: LayerPlan,
              widest: Candidate, inputs: Sequence[Candidate], geometry: LayerGeometry,
              method: Method) -> LayerSolution:
    """What is written into the layer: scales of weights carry the scale of the widest input."""
    bias, made = layer.float_weights().bias, []
    for one, judged in zip(found, choice.judged):
        whole = layer_solution(choice.of(one.bits), judged.bias, one.input.qparams, bias, geometry,
                               replace(plan, weight=replace(plan.weight, num_bits=one.bits)))
        factor = _factor(one.input.qparams, widest.qparams)
        offset = whole.weight_offset
        made.append(replace(
            whole, weight_scale=whole.weight_scale / factor, qparams=None,
            weight_offset=None if offset is None else offset / factor))
    narrower = {one.qparams.num_bits: one.qparams for one in inputs
                if one.qparams is not None and one is not widest}
    return solution_as_stored(replace(
        made[-1], qparams=widest.qparams, narrower=tuple(reversed(made[:-1])),
        narrower_inputs=tuple(qparams for _, qparams in sorted(narrower.items(), reverse=True)
                              if qparams.num_bits != widest.qparams.num_bits),
        nesting=choice.solution.nesting if len(made) > 1 else None))


def _with_output(solution: LayerSolution, plan: LayerPlan, pairs: Sequence[Prefix],
                 inputs: Sequence[Candidate], captures: Sequence[Sequence[CallCapture]],
                 geometry: LayerGeometry, team: Team) -> LayerSolution:
    """With scales of the output: of one width on the widest pair, of several each on the first
    pair whose input has it."""
    assert plan.output is not None
    widths = plan.output.widths or (plan.output.num_bits,)

    def search(bits: int) -> QParams:
        index = next((number for number, pair in enumerate(pairs)
                      if len(widths) > 1 and pair.input == bits), len(pairs) - 1)
        used = inputs[index].qparams
        alone = one_width(solution, Widths(pairs[index].weight,
                                           None if used is None else used.num_bits))
        return search_output_qparams(alone, inputs[index], captures[index], geometry, replace(
            plan, output=replace(plan.output, num_bits=bits)), team)
    widest, *narrower = at_widths(search, widths)
    return replace(solution, output_qparams=widest, narrower_outputs=tuple(narrower))


def _factor(qparams: QParams | None, widest: QParams | None) -> float:
    """The scale of an input in parts of the widest's, where weights carry scales."""
    if qparams is None or not qparams.unit or qparams is widest:
        return 1.0
    return float(qparams.scale[0].double() / widest.scale[0].double())
