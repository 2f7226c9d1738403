"""From what was captured of a layer to its solution: scales, strength, codes, guard."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import channel_ranges, rows_to_weight, weight_rows, whole_steps
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.candidates import choose_solution, only_choice
from mmbitsplit.solving.input_scales import Candidate, choose_input
from mmbitsplit.solving.narrower_inputs import narrower_inputs
from mmbitsplit.solving.output_scales import at_widths, search_output_qparams
from mmbitsplit.solving.positions import LayerPositions, Rows
from mmbitsplit.solving.statistics import collect_statistics
from mmbitsplit.structures import (
    LayerGeometry,
    LayerPlan,
    LayerSolution,
    LayerStatistics,
    QParams,
    RowStatistics,
    WeightSolution,
)

FITTED_AND_JUDGED = ('no positions are held out: errors, and whether plain rounding is better, are '
                     'judged on those that the codes were fitted to',)


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
        candidates: Error of each solution that there was, by name.
        sweeps: Sweeps of the descent.
        rows: Positions looked at, over all processes.
        calls: Calls that they come from, over all processes.
        input_ranges: Of the layer's input in the quantized model, see ``channel_ranges``.
        notes: For the report.
        width_errors: Of several widths, as ``LayerReport`` has them.
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
    candidates: dict[str, float] = field(default_factory=dict)
    width_errors: tuple[dict[str, Any], ...] = ()


def solve_layer(layer: QuantizedLayer, plan: LayerPlan, method: Method,
                captures: Sequence[CallCapture], targets: Sequence[Tensor],
                team: Team | None = None, stopwatch: Stopwatch | None = None,
                shared: Sequence[QParams] = (), sums: 'FittedSums | None' = None,
                given: LayerSolution | None = None) -> Solved:
    """Quantizes one layer; every process of the team returns the same.

    Args:
        layer: In float, or as it was solved before.
        plan: Bits and modes.
        method: Chooses the codes.
        captures: Of every call in the quantized model, this process's.
        targets: Float outputs (G, M, K) of the same calls at the same positions.
        team: The processes that hold the other calls; this one alone when not given.
        stopwatch: Told what the parts take.
        shared: Of the residual stream that it reads at each of its widths, the widest first; none
            where it reads none.
        sums: What the layer was solved from before on the same captures, used again where its
            input is quantized alike: for several widths of one layer.
        given: Codes and scales of a weight that is not the layer's alone: they are taken as they
            are, and inputs and bias are fitted to them.
    """
    team, stopwatch = team or Team(), stopwatch or Stopwatch()
    geometry, weight = layer.geometry, layer.float_rows()
    rows = LayerPositions(captures, targets, team, weight)
    with stopwatch('solve_scales'):
        best, samples = choose_input(captures, rows, layer, plan, method,
                                     shared[0] if shared else None)
        ranges = channel_ranges(samples, best.qparams)
        fewer = tuple(replace(one, unit=True) for one in shared[1:]) if plan.stream else \
            narrower_inputs(samples, best, plan.activation, plan.input_widths)
        del samples
    with stopwatch('solve_statistics'):
        fitted = fit_and_held_out if sums is None else sums.of
        statistics, held_out, apart = fitted(rows, best, geometry, method)
    with stopwatch('solve_codes'):
        if given is None:
            choice = choose_solution(method, statistics,
                                     best.weight(weight, geometry).to(statistics.x_sum.dtype),
                                     plan.weight, held_out, team)
        else:
            choice = only_choice(method, statistics, on_inputs(given, best, geometry), held_out,
                                 team)
    del statistics, held_out
    calls, sampled = map(sum, zip(*team.gather(
        (len(captures), sum(capture.patches.shape[-1] for capture in captures)))))
    bias = layer.float_weights().bias
    solution = layer_solution(choice.solution, choice.judged.bias, best.qparams, bias,
                              geometry, plan)
    narrower = {bits: one for bits, one in choice.narrower.items()
                if not method.widths or bits in plan.widths}  # else the method says by itself
    solution = replace(solution, narrower=tuple(
        layer_solution(one, judged.bias, best.qparams, bias, geometry,
                       replace(plan, weight=replace(plan.weight, num_bits=num_bits)))
        for num_bits, (one, judged) in narrower.items()), narrower_inputs=fewer)
    if plan.output is not None:
        with stopwatch('solve_scales'):
            output, *fewer = at_widths(
                lambda bits: search_output_qparams(solution, best, captures, geometry, replace(
                    plan, output=replace(plan.output, num_bits=bits)), team),
                plan.output.widths or (plan.output.num_bits,))
            solution = replace(solution, output_qparams=output, narrower_outputs=tuple(fewer))
    return team.from_first(Solved(
        solution=solution, strength=best.strength, search=best.search, error=choice.judged.error,
        error_rounding=choice.error_rounding, guard_taken=choice.guard_taken,
        candidates=dict(choice.errors), sweeps=choice.sweeps, rows=sampled, calls=calls,
        input_ranges=ranges, notes=(
            *(() if apart else FITTED_AND_JUDGED), *width_notes(choice.solution, best.qparams),
            *(f'can be switched to {num_bits} bits: error {judged.error:.4g}'
              for num_bits, (_, judged) in narrower.items()))))


def on_inputs(given: LayerSolution, candidate: Candidate, geometry: LayerGeometry,
              ) -> WeightSolution:
    """Codes that are given, on the scale of a layer's inputs.

    Args:
        given: Codes, shape of the weight, and (out_channels,) scales of the weight itself.
        candidate: How the inputs are quantized: with one scale, or not at all.
        geometry: Of the layer.
    """
    qparams = candidate.qparams
    steps = 1.0 if qparams is None or not qparams.unit else float(qparams.scale)
    scale = given.weight_scale.view(geometry.groups, -1) * steps
    return WeightSolution(weight_rows(given.codes, geometry), scale, torch.zeros_like(scale))


class FittedSums:
    """What a layer is solved from and judged on, kept for the input quantization asked for last."""

    def __init__(self) -> None:
        self._of: Candidate | None = None
        self._found: tuple[LayerStatistics | RowStatistics, Rows, bool] | None = None

    def of(self, rows: LayerPositions, candidate: Candidate, geometry: LayerGeometry,
           method: Method) -> tuple[LayerStatistics | RowStatistics, Rows, bool]:
        """What the method is given, positions to judge on, and whether these are others."""
        if self._found is None or not _alike(self._of, candidate):
            self._of = self._found = None  # its memory is free before the next is made
            self._found = fit_and_held_out(rows, candidate, geometry, method)
            self._of = candidate
        return self._found


def _alike(one: Candidate, other: Candidate) -> bool:
    """Whether both quantize an input to the same values."""
    if one.qparams is None or other.qparams is None:
        return one.qparams is other.qparams
    pairs = zip(vars(one.qparams).values(), vars(other.qparams).values())
    return all(isinstance(b, Tensor) and torch.equal(a, b) if isinstance(a, Tensor) else a == b
               for a, b in pairs)


def fit_and_held_out(rows: LayerPositions, candidate: Candidate, geometry: LayerGeometry,
                      method: Method, parts: tuple[Rows, Rows] | None = None,
                      ) -> tuple[LayerStatistics | RowStatistics, Rows, bool]:
    """What the method is given, positions to judge on, and whether these are others.

    Inputs are those that enter the product; of a large layer each copy is half a gigabyte.
    ``parts`` are those of ``rows.split()``, where the caller needs them again.
    """
    fit, held_out = parts or rows.split()
    del parts
    apart = held_out is not fit
    held_out = replace(held_out, x=candidate.inputs(held_out.x, geometry))
    fit = replace(fit, x=candidate.inputs(fit.x, geometry))
    statistics = collect_statistics(fit, candidate.lowest(geometry), method.bias_correction,
                                    rows.team, 'rows' in method.needs)
    return statistics, held_out, apart


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
