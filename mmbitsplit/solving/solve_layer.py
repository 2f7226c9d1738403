"""From what was captured of a layer to its solution: scales, strength, codes, guard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import (
    channel_ranges,
    round_weight,
    rows_to_weight,
    weight_scale,
    whole_steps,
)
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import choose_input
from mmbitsplit.solving.output_error import output_error
from mmbitsplit.solving.output_scales import search_output_qparams
from mmbitsplit.solving.positions import LayerPositions
from mmbitsplit.solving.statistics import collect_statistics
from mmbitsplit.structures import (
    LayerGeometry,
    LayerPlan,
    LayerSolution,
    LayerStatistics,
    QParams,
    RowStatistics,
    WeightSolution,
    WeightSpec,
)

# Output channels are shared out by so many: matrix products give a row the same last bits in any
# whole number of their tiles, so that a solution does not depend on the number of processes.
CHANNELS = 16
FITTED_AND_JUDGED = ('no positions are held out: errors, and whether plain rounding is better, are '
                     'told on those that the codes were fitted to',)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A solution with its errors on positions that it was not fitted to.

    Args:
        solution: What to write into the layer.
        strength: Of ECAQ, ``None`` in other modes.
        search: How the input's scales were found, ``None`` for a float input.
        error: Relative squared output error.
        error_rounding: The same of plain rounding with the same input quantization.
        guard_taken: Whether plain rounding was taken instead of the method's codes.
        sweeps: Sweeps of the descent.
        rows: Positions looked at, over all processes.
        calls: Calls that they come from, over all processes.
        input_ranges: Of the layer's input in the quantized model, see ``channel_ranges``.
        notes: For the report.
    """

    solution: LayerSolution
    strength: float | None
    search: str | None = None
    error: float
    error_rounding: float
    guard_taken: bool
    sweeps: int
    rows: int
    calls: int
    input_ranges: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def solve_layer(layer: QuantizedLayer, plan: LayerPlan, method: Method,
                captures: Sequence[CallCapture], targets: Sequence[Tensor],
                team: Team | None = None, stopwatch: Stopwatch | None = None) -> Solved:
    """Quantizes one layer; every process of the team returns the same.

    Args:
        layer: Still in float.
        plan: Bits and modes.
        method: Chooses the codes.
        captures: Of every call in the quantized model, this process's.
        targets: Float outputs (G, M, K) of the same calls at the same positions.
        team: The processes that hold the other calls; this one alone when not given.
        stopwatch: Told what the parts take.
    """
    team, stopwatch = team or Team(), stopwatch or Stopwatch()
    geometry, weight = layer.geometry, layer.float_rows()
    rows = LayerPositions(captures, targets, team, weight)
    with stopwatch('solve_scales'):
        best, samples = choose_input(captures, rows, layer, plan, method)
        ranges = channel_ranges(samples, best.qparams)
        del samples
    with stopwatch('solve_statistics'):
        fit, judge = rows.split()
        notes = FITTED_AND_JUDGED if judge is fit else ()
        inputs, y = best.inputs(judge.x, geometry), judge.y
        del judge  # of a large layer each is half a gigabyte
        fit = replace(fit, x=best.inputs(fit.x, geometry))
        evidence = collect_statistics(fit, best.lowest(geometry), method.bias_correction, team)
        del fit
    with stopwatch('solve_codes'):
        scaled = best.weight(weight, geometry).to(evidence.x_sum.dtype)
        solved = _solve_in_shares(method, evidence, scaled, plan.weight.num_bits, team)
    judged = output_error(solved.weight, evidence, inputs, y, method, team)
    rounded = plain_rounding(scaled, plan.weight)
    plain = output_error(rounded.weight, evidence, inputs, y, method, team)
    guard_taken = method.guard and not judged.error <= plain.error  # NaN is no solution either
    codes, judged = (rounded, plain) if guard_taken else (solved, judged)
    calls, sampled = map(sum, zip(*team.gather(
        (len(captures), sum(capture.patches.shape[-1] for capture in captures)))))
    solution = layer_solution(codes, judged.bias, best.qparams, layer.bias, geometry, plan)
    if plan.output is not None:
        with stopwatch('solve_scales'):
            solution = replace(solution, output_qparams=search_output_qparams(
                solution, best, captures, geometry, plan, team))
    return team.from_first(Solved(
        solution=solution, strength=best.strength, search=best.search, error=judged.error,
        error_rounding=plain.error, guard_taken=guard_taken, sweeps=solved.num_sweeps,
        rows=sampled, calls=calls, input_ranges=ranges,
        notes=(*notes, *width_notes(codes, best.qparams))))


def plain_rounding(weight: Tensor, spec: WeightSpec) -> WeightSolution:
    """What the guard falls back to and every report compares with."""
    scale = weight_scale(weight, spec.num_bits, spec.scale_search)
    codes = round_weight(weight, scale, spec.num_bits)
    return WeightSolution(codes.to(torch.int8), scale, torch.zeros_like(scale))


def _solve_in_shares(method: Method, evidence: LayerStatistics | RowStatistics, weight: Tensor,
                     num_bits: int, team: Team) -> WeightSolution:
    """Every process solves some of the output channels, which do not depend on each other."""
    solve = method.solve_rows if isinstance(evidence, RowStatistics) else method.solve
    if team.size == 1 or weight.shape[1] < team.size * CHANNELS:
        return solve(evidence, weight, num_bits)
    share = team.share(weight.shape[1], CHANNELS)
    names = ('y_sum', 'y') if isinstance(evidence, RowStatistics) else ('y_sum', 'cross', 'y_sq')
    mine = replace(evidence, **{name: getattr(evidence, name)[:, share] for name in names})
    parts = team.gather(solve(mine, weight[:, share], num_bits))
    joined = {name: torch.cat([getattr(part, name) for part in parts], 1)
              for name in ('codes', 'scale', 'objective', 'offset', 'num_bits')
              if getattr(parts[0], name) is not None}
    return WeightSolution(**joined, num_sweeps=max(part.num_sweeps for part in parts))


def layer_solution(solved: WeightSolution, correction: Tensor | None, qparams: QParams | None,
                   bias: Tensor | None, geometry: LayerGeometry, plan: LayerPlan) -> LayerSolution:
    """Puts together what is written into a layer.

    Args:
        solved: Codes and scales.
        correction: (G, M) of the bias, ``None`` for none.
        qparams: Of the input, ``None`` for a float input.
        bias: (out_channels,) of the float layer, or ``None``.
        geometry, plan: Of the layer.
    """
    total = bias
    if correction is not None:
        total = correction.reshape(-1) + (0.0 if bias is None else bias.double())
    if total is not None and qparams is not None and qparams.unit:
        total = whole_steps(total.detach(), solved.scale.reshape(-1).float())
    num_bits = plan.weight.num_bits if solved.num_bits is None else int(solved.num_bits.max())
    return LayerSolution(
        codes=rows_to_weight(solved.codes, geometry), num_bits=num_bits,
        weight_scale=solved.scale.reshape(-1).float(),
        bias=None if total is None else total.detach().float(), qparams=qparams,
        weight_offset=None if solved.offset is None else solved.offset.reshape(-1).float())


def width_notes(solved: WeightSolution, qparams: QParams | None) -> tuple[str, ...]:
    """Says which widths the channels have, where they differ."""
    notes = []
    if solved.num_bits is not None:
        bits = solved.num_bits
        notes.append(f'weights have {int(bits.min())} to {int(bits.max())} bits a channel, '
                     f'{float(bits.double().mean()):.2f} on average; the file packs all of them '
                     f'with {int(bits.max())}')
    if qparams is not None and qparams.channel_max is not None:
        bits = (qparams.channel_max + 1).log2() + (qparams.quant_min < 0)
        notes.append(f'inputs have {int(bits.min())} to {int(bits.max())} bits a channel, '
                     f'{float(bits.double().mean()):.2f} on average')
    return tuple(notes)
