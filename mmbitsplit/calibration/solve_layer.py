"""From what was captured of a layer to its solution: scales, strength, codes, guard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.calibration.capture import CallCapture, merge_samples
from mmbitsplit.calibration.methods import Method, RoundToNearest
from mmbitsplit.functional import (
    ActivationSamples,
    bias_correction,
    center,
    channel_scales,
    interpolate_scales,
    layer_statistics,
    per_input,
    product_input,
    rows_to_weight,
    search_qparams,
)
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import (
    ActivationSpec,
    LayerPlan,
    LayerSolution,
    LayerStatistics,
    QParams,
    WeightSolution,
)

STRENGTHS = (0.0, 0.3, 0.6, 1.0)  # 0: one scale a tensor, 1: the paper's ECAQ
# Where activations have no more bits than weights, the strongest ECAQ is taken whose output error
# is within this factor of the least: at equal error in its own layer it spends the codes of every
# channel better, and later layers gain (CIFAR ResNet-20 W3A3, three seeds: 78.9 -> 79.4 %). With
# fewer weight bits the rescaled weights are what is hard to quantize, and the least error is
# taken (W2A4: 77.9 %, 77.5 % with the factor).
STRENGTH_TOLERANCE = 1.05
# Above this many inputs of an output one gram is a gigabyte, and the strength is not tried out:
# by the same reasoning it is 1 where activations have no more bits than weights, else 0.
MOST_INPUTS_FOR_STRENGTH = 4608
# Rows that the choice of the strength solves and judges on; the final solve takes all.
ROWS_FOR_STRENGTH, ROWS_TO_JUDGE = 4096, 8192


@dataclass(frozen=True)
class Candidate:
    """One way to quantize a layer's input.

    Args:
        qparams: ``None`` for a float input.
        strength: Of ECAQ, ``None`` in other modes.
    """

    qparams: QParams | None
    strength: float | None = None


@dataclass(frozen=True)
class Rows:
    """Sampled positions of a layer, as columns.

    Args:
        x: (G, N, K) real inputs of the product in the quantized model.
        y: (G, M, K) float outputs without bias.
    """

    x: Tensor
    y: Tensor

    def take(self, chosen: Tensor) -> 'Rows':
        """The columns that ``chosen``, indices or a mask, names."""
        return Rows(self.x[..., chosen], self.y[..., chosen])


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
    """

    solution: LayerSolution
    strength: float | None
    error: float
    error_rounding: float
    guard_taken: bool
    sweeps: int


def solve_layer(layer: QuantizedLayer, plan: LayerPlan, method: Method,
                captures: Sequence[CallCapture], targets: Sequence[Tensor]) -> Solved:
    """Quantizes one layer.

    Args:
        layer: Still in float.
        plan: Bits and modes.
        method: Chooses the codes.
        captures: Of every call in the quantized model.
        targets: Float outputs (G, M, K) of the same calls at the same positions.
    """
    rows = Rows(torch.cat([capture.patches for capture in captures], -1),
                torch.cat(list(targets), -1))
    held_out = torch.cat([capture.held_out for capture in captures]).to(rows.x.device)
    fit, judge = rows.take(~held_out), rows.take(held_out)
    if not held_out.any() or held_out.all():  # nothing apart to judge on
        fit = judge = rows
    weight = layer.float_rows()
    candidates = input_candidates(merge_samples(captures), plan.activation)
    best = _choose(candidates, rows, fit, weight, layer, plan, method)
    statistics, scaled = _statistics(fit, best, weight, layer, method)
    solved = method.solve(statistics, scaled, plan.weight.num_bits)
    plain = RoundToNearest(plan.weight.scale_search).solve(statistics, scaled,
                                                           plan.weight.num_bits)
    error, bias = _judge(solved, statistics, judge, best, layer, method)
    error_rounding, bias_rounding = _judge(plain, statistics, judge, best, layer, method)
    guard_taken = method.guard and not error <= error_rounding  # NaN is no solution either
    if guard_taken:
        solved, error, bias = replace(plain, num_sweeps=solved.num_sweeps), error_rounding, \
            bias_rounding
    return Solved(_solution(solved, bias, best, layer, plan), best.strength, error, error_rounding,
                  guard_taken, solved.num_sweeps)


def input_candidates(samples: ActivationSamples, spec: ActivationSpec) -> list[Candidate]:
    """Lists the input quantizations that the spec leaves open: one, or one a strength."""
    if spec.num_bits is None:
        return [Candidate(None)]
    search = dict(symmetry=spec.symmetry, search=spec.scale_search)
    if spec.mode == 'per_channel':
        return [Candidate(search_qparams(samples, spec.num_bits, per_channel=True, **search))]
    tensor = search_qparams(samples, spec.num_bits, **search)
    if spec.mode == 'per_tensor':
        return [Candidate(replace(tensor, unit=True))]
    by_channel = channel_scales(samples, tensor, spec.scale_search)
    strengths = STRENGTHS if spec.strength == 'auto' else (float(spec.strength),)
    return [Candidate(QParams(
        interpolate_scales(tensor.scale, by_channel, strength),
        tensor.zero_point.expand_as(by_channel), tensor.quant_min, tensor.quant_max, unit=True),
        strength) for strength in strengths]


def _choose(candidates: list[Candidate], rows: Rows, fit: Rows, weight: Tensor,
            layer: QuantizedLayer, plan: LayerPlan, method: Method) -> Candidate:
    """Returns the candidate of least output error, or the strongest that comes close to it.

    Each is solved quickly on a part of ``fit`` and judged on ``rows``.
    """
    generous = plan.activation.num_bits is not None \
        and plan.activation.num_bits <= plan.weight.num_bits
    if len(candidates) == 1 or layer.geometry.inputs_per_output > MOST_INPUTS_FOR_STRENGTH:
        return candidates[-1 if generous else 0]
    method = method.quick()
    part, judged = _thin(fit, ROWS_FOR_STRENGTH), _thin(rows, ROWS_TO_JUDGE)
    errors = []
    for candidate in candidates:
        statistics, scaled = _statistics(part, candidate, weight, layer, method)
        solved = method.solve(statistics, scaled, plan.weight.num_bits)
        errors.append(_judge(solved, statistics, judged, candidate, layer, method)[0])
    limit = min(errors) * (STRENGTH_TOLERANCE if generous else 1.0)
    return [candidate for candidate, error in zip(candidates, errors) if error <= limit][-1]


def _thin(rows: Rows, most: int) -> Rows:
    step = -(-rows.x.shape[-1] // most)
    return rows.take(slice(None, None, step))


def _product_rows(x: Tensor, candidate: Candidate, layer: QuantizedLayer) -> Tensor:
    """What enters the product: (G, N, K) real inputs through the input quantization."""
    if candidate.qparams is None:
        return x
    groups, inputs, positions = x.shape
    scale = per_input(candidate.qparams.scale, layer.geometry).reshape(-1)
    zero_point = per_input(candidate.qparams.zero_point, layer.geometry).reshape(-1)
    spread = replace(candidate.qparams, scale=scale, zero_point=zero_point)
    return product_input(x.reshape(-1, positions), spread, channel_dim=0).view_as(x)


def _statistics(rows: Rows, candidate: Candidate, weight: Tensor, layer: QuantizedLayer,
                method: Method) -> tuple[LayerStatistics, Tensor]:
    """Sums for one candidate, and the float weight on their scale (paper, Eq. 13)."""
    statistics = layer_statistics(_product_rows(rows.x, candidate, layer), rows.y)
    if method.bias_correction:
        statistics = center(statistics)
    if candidate.qparams is not None and candidate.qparams.unit:
        weight = weight * per_input(candidate.qparams.scale, layer.geometry).unsqueeze(1)
    return statistics, weight.to(statistics.gram)


def _judge(solved: WeightSolution, statistics: LayerStatistics, rows: Rows,
           candidate: Candidate, layer: QuantizedLayer, method: Method,
           ) -> tuple[float, Tensor | None]:
    """Returns the relative squared error on ``rows``, and the bias correction (G, M)."""
    weight = solved.codes.to(solved.scale) * solved.scale.unsqueeze(-1)
    error = rows.y - weight.to(rows.y) @ _product_rows(rows.x, candidate, layer)
    bias = None
    if method.bias_correction:
        bias = bias_correction(statistics, weight)
        error = error - bias.to(error).unsqueeze(-1)
    spread = rows.y - rows.y.mean(-1, keepdim=True)
    energy = spread.double().square().sum()
    return float(error.double().square().sum() / torch.where(energy > 0, energy, 1.0)), bias


def _solution(solved: WeightSolution, bias: Tensor | None, candidate: Candidate,
              layer: QuantizedLayer, plan: LayerPlan) -> LayerSolution:
    total = layer.bias
    if bias is not None:
        total = bias.reshape(-1) + (0.0 if layer.bias is None else layer.bias.double())
    return LayerSolution(rows_to_weight(solved.codes, layer.geometry), plan.weight.num_bits,
                         solved.scale.reshape(-1).float(),
                         None if total is None else total.detach().float(), candidate.qparams)
