"""Chooses how a layer's input is quantized; ECAQ's strength by what it does to the output."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from mmbitsplit.calibration.evidence import sum_products
from mmbitsplit.calibration.methods import Method
from mmbitsplit.calibration.output_error import output_error
from mmbitsplit.calibration.rows import LayerRows
from mmbitsplit.functional import (
    ActivationSamples,
    channel_scales,
    interpolate_scales,
    per_input,
    product_input,
    search_qparams,
)
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import (
    ActivationSpec,
    LayerGeometry,
    LayerPlan,
    QParams,
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
# Outputs that the choice of the strength solves and judges on, and positions: as many for each of
# the two as small layers need (W2A4 on CIFAR falls by 0.4 points with half as many), fewer for
# large layers, whose grams are dear.
OUTPUTS_FOR_STRENGTH = 128
ROWS_FOR_STRENGTH, LEAST_ROWS_FOR_STRENGTH, ELEMENTS_FOR_STRENGTH = 8192, 2048, 1 << 21


@dataclass(frozen=True)
class Candidate:
    """One way to quantize a layer's input.

    Args:
        qparams: ``None`` for a float input.
        strength: Of ECAQ, ``None`` in other modes.
    """

    qparams: QParams | None
    strength: float | None = None

    def inputs(self, x: Tensor, geometry: LayerGeometry) -> Tensor:
        """What enters the product: (G, N, K) real inputs through the input quantization."""
        if self.qparams is None:
            return x
        groups, inputs, positions = x.shape
        scale = per_input(self.qparams.scale, geometry).reshape(-1)
        zero_point = per_input(self.qparams.zero_point, geometry).reshape(-1)
        channel_max = self.qparams.channel_max
        if channel_max is not None:
            channel_max = per_input(channel_max, geometry).reshape(-1)
        spread = replace(self.qparams, scale=scale, zero_point=zero_point,
                         channel_max=channel_max)
        return product_input(x.reshape(groups * inputs, positions), spread,
                             channel_dim=0).view_as(x)

    @property
    def lowest(self) -> int | None:
        """Smallest integer that may enter the product, ``None`` where real values do."""
        if self.qparams is None or not self.qparams.unit:
            return None
        zero_point = self.qparams.zero_point.unique()
        return int(self.qparams.quant_min - zero_point) if zero_point.numel() == 1 else None

    def weight(self, weight: Tensor, geometry: LayerGeometry) -> Tensor:
        """The float weight (G, M, N) on the scale of those inputs (paper, Eq. 13)."""
        if self.qparams is None or not self.qparams.unit:
            return weight
        return weight * per_input(self.qparams.scale, geometry).unsqueeze(1)


def input_candidates(samples: ActivationSamples, spec: ActivationSpec) -> list[Candidate]:
    """Lists the input quantizations that the spec leaves open: one, or one a strength."""
    if spec.num_bits is None:
        return [Candidate(None)]
    search = dict(symmetry=spec.symmetry, search=spec.scale_search, norm=spec.norm)
    if spec.mode == 'per_channel':
        return [Candidate(search_qparams(samples, spec.num_bits, per_channel=True,
                                         bit_allocation=spec.bit_allocation, **search))]
    tensor = search_qparams(samples, spec.num_bits, **search)
    if spec.mode == 'per_tensor':
        return [Candidate(replace(tensor, unit=True))]
    by_channel = channel_scales(samples, tensor, spec.scale_search, spec.norm)
    strengths = STRENGTHS if spec.strength == 'auto' else (float(spec.strength),)
    return [Candidate(QParams(
        interpolate_scales(tensor.scale, by_channel, strength),
        tensor.zero_point.expand_as(by_channel), tensor.quant_min, tensor.quant_max, unit=True),
        strength) for strength in strengths]


def choose_candidate(candidates: list[Candidate], rows: LayerRows, layer: QuantizedLayer,
                     plan: LayerPlan, method: Method) -> Candidate:
    """Returns the candidate of least output error, or the strongest that comes close to it.

    Each is solved quickly on a part of the positions and outputs, and judged on other positions.
    """
    generous = plan.activation.num_bits is not None \
        and plan.activation.num_bits <= plan.weight.num_bits
    if len(candidates) == 1 or layer.geometry.inputs_per_output > MOST_INPUTS_FOR_STRENGTH:
        return candidates[-1 if generous else 0]
    method, team = method.quick(), rows.team
    every = max(1, layer.geometry.out_channels // layer.geometry.groups // OUTPUTS_FOR_STRENGTH)
    most = max(LEAST_ROWS_FOR_STRENGTH, min(
        ROWS_FOR_STRENGTH, ELEMENTS_FOR_STRENGTH // layer.geometry.inputs_per_output))
    fit, judge = (replace(part, y=part.y[:, ::every].contiguous()) for part in rows.thin(most))
    weight = layer.float_rows()[:, ::every]

    def error_of(candidate: Candidate) -> float:
        statistics = sum_products(replace(fit, x=candidate.inputs(fit.x, layer.geometry)),
                                  candidate.lowest, method.bias_correction, team)
        solved = method.solve(statistics, candidate.weight(weight, layer.geometry)
                              .to(statistics.gram), plan.weight.num_bits)
        inputs = candidate.inputs(judge.x, layer.geometry)
        error = output_error(solved.weight, statistics, inputs, judge.y, method, team).error
        return math.inf if math.isnan(error) else error  # no solution; the guard sees it again

    # From the likelier end, as long as the error falls.
    tried: list[tuple[float, Candidate]] = []
    for candidate in reversed(candidates) if generous else candidates:
        tried.append((error_of(candidate), candidate))
        if len(tried) > 1 and tried[-1][0] > tried[-2][0]:
            break
    limit = min(error for error, _ in tried) * (STRENGTH_TOLERANCE if generous else 1.0)
    return next(candidate for error, candidate in tried if error <= limit)
