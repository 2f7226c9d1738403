"""From what was captured of a layer to its solution: scales, strength, codes, guard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.calibration.capture import CallCapture, merge_samples
from mmbitsplit.calibration.evidence import collect_evidence
from mmbitsplit.calibration.input_scales import (
    Candidate,
    choose_candidate,
    input_candidates,
)
from mmbitsplit.calibration.methods import Method
from mmbitsplit.calibration.output_error import output_error
from mmbitsplit.calibration.output_scales import search_output_qparams
from mmbitsplit.calibration.rows import LayerRows
from mmbitsplit.calibration.stopwatch import Stopwatch
from mmbitsplit.calibration.team import Team
from mmbitsplit.functional import round_weight, rows_to_weight, weight_scale, whole_steps
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import (
    LayerPlan,
    LayerSolution,
    LayerStatistics,
    RowStatistics,
    WeightSolution,
)

# Output channels are shared out by so many: matrix products give a row the same last bits in any
# whole number of their tiles, so that a solution does not depend on the number of processes.
CHANNELS = 16


@dataclass(frozen=True)
class Solved:
    """A solution with its errors on positions that it was not fitted to.

    Args:
        solution: What to write into the layer.
        strength: Of ECAQ, ``None`` in other modes.
        error: Relative squared output error.
        error_rounding: The same of plain rounding with the same input quantization.
        guard_taken: Whether plain rounding was taken instead of the method's codes.
        sweeps: Sweeps of the descent.
        rows: Positions looked at, over all processes.
        calls: Calls that they come from, over all processes.
    """

    solution: LayerSolution
    strength: float | None
    error: float
    error_rounding: float
    guard_taken: bool
    sweeps: int
    rows: int
    calls: int


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
    rows = LayerRows(captures, targets, team, weight)
    with stopwatch('solve_scales'):
        candidates = input_candidates(merge_samples(captures, team), plan.activation)
        best = choose_candidate(candidates, rows, layer, plan, method)
    with stopwatch('solve_statistics'):
        fit, judge = rows.split()
        inputs, y = best.inputs(judge.x, geometry), judge.y
        del judge  # of a large layer each is half a gigabyte
        fit = replace(fit, x=best.inputs(fit.x, geometry))
        evidence = collect_evidence(fit, best.lowest, method.bias_correction, team)
        del fit
    with stopwatch('solve_codes'):
        scaled = best.weight(weight, geometry).to(evidence.x_sum.dtype)
        solved = _solve_in_shares(method, evidence, scaled, plan.weight.num_bits, team)
    codes, scale, judged = solved.codes, solved.scale, output_error(
        solved.codes, solved.scale, evidence, inputs, y, method, team)
    plain_scale = weight_scale(scaled, plan.weight.num_bits, plan.weight.scale_search)
    plain_codes = round_weight(scaled, plain_scale, plan.weight.num_bits)
    plain = output_error(plain_codes, plain_scale, evidence, inputs, y, method, team)
    guard_taken = method.guard and not judged.error <= plain.error  # NaN is no solution either
    if guard_taken:
        codes, scale, judged = plain_codes.to(torch.int8), plain_scale, plain
    calls, sampled = map(sum, zip(*team.gather(
        (len(captures), sum(capture.patches.shape[-1] for capture in captures)))))
    solution = _solution(codes, scale, judged.bias, best, layer, plan)
    if plan.output is not None:
        with stopwatch('solve_scales'):
            solution = replace(solution, output_qparams=search_output_qparams(
                solution, best, captures, geometry, plan, team))
    return team.from_first(Solved(
        solution, best.strength, judged.error,
        plain.error, guard_taken, solved.num_sweeps, sampled, calls))


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
    return WeightSolution(
        *(torch.cat([getattr(part, name) for part in parts], 1)
          for name in ('codes', 'scale', 'objective')),
        num_sweeps=max(part.num_sweeps for part in parts))


def _solution(codes: Tensor, scale: Tensor, bias: Tensor | None, candidate: Candidate,
              layer: QuantizedLayer, plan: LayerPlan) -> LayerSolution:
    total = layer.bias
    if bias is not None:
        total = bias.reshape(-1) + (0.0 if layer.bias is None else layer.bias.double())
    if total is not None and candidate.qparams is not None and candidate.qparams.unit:
        total = whole_steps(total.detach(), scale.reshape(-1).float())
    return LayerSolution(rows_to_weight(codes, layer.geometry), plan.weight.num_bits,
                         scale.reshape(-1).float(),
                         None if total is None else total.detach().float(), candidate.qparams)
