"""Chooses how a layer's input is quantized; ECAQ's strength by what it does to the output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.functional import (
    ActivationSamples,
    channel_qparams,
    interpolate_qparams,
    per_input,
    product_input,
    search_qparams,
)
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture, merge_samples
from mmbitsplit.solving.output_error import output_error
from mmbitsplit.solving.positions import LayerPositions
from mmbitsplit.solving.statistics import collect_statistics
from mmbitsplit.structures import (
    ActivationSpec,
    LayerGeometry,
    LayerPlan,
    QParams,
)

# What scale_search='auto' chooses from. The first is taken unless another has less than this part
# of its error: clipping spares many inputs a little and spoils few by much, and samples see too
# little of those few. Over whole images the median layer of YOLOX-nano has 6 times the error with
# 'mse' than with 'minmax' at 8 bits (the least 1.1), and 0.6 times at 4 bits.
SEARCHES = ('minmax', 'mse')
CLIPPING_GAIN = 0.9
SHARED = 'shared'  # what the report says of an input whose scale is that of a residual stream
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
ROWS_FOR_CLIPPING = 1024  # by which ranges of further widths are told apart


@dataclass(frozen=True)
class Candidate:
    """One way to quantize a layer's input.

    Args:
        qparams: ``None`` for a float input.
        strength: Of ECAQ, ``None`` in other modes.
        search: How the scales were found; ``None`` for a float input.
    """

    qparams: QParams | None
    strength: float | None = None
    search: str | None = None

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

    def rounding_error(self, x: Tensor, geometry: LayerGeometry) -> Tensor:
        """What rounding does to real inputs (G, N, K)."""
        rounded = self.inputs(x, geometry)
        if self.qparams is not None and self.qparams.unit:
            rounded *= per_input(self.qparams.scale, geometry).unsqueeze(-1)
        return rounded - x

    def lowest(self, geometry: LayerGeometry) -> int | Tensor | None:
        """Smallest integer that may enter the product: one, or (G, N, 1) where inputs differ.

        ``None`` where real values enter.
        """
        if self.qparams is None or not self.qparams.unit:
            return None
        zero_point = self.qparams.zero_point.to(torch.int64)
        lowest = self.qparams.quant_min - zero_point
        if bool((zero_point == zero_point[0]).all()):
            return int(lowest[0])
        return per_input(lowest, geometry).unsqueeze(-1)

    def weight(self, weight: Tensor, geometry: LayerGeometry) -> Tensor:
        """The float weight (G, M, N) on the scale of those inputs (paper, Eq. 13)."""
        if self.qparams is None or not self.qparams.unit:
            return weight
        return weight * per_input(self.qparams.scale, geometry).unsqueeze(1)


def input_candidates(samples: ActivationSamples, spec: ActivationSpec) -> list[Candidate]:
    """Lists the input quantizations that the spec leaves open, one a search and strength.

    Those of a search stand together, its strengths rising.
    """
    if spec.num_bits is None:
        return [Candidate(None)]
    searches = SEARCHES if spec.scale_search == 'auto' else (spec.scale_search,)
    return [candidate for search in searches
            for candidate in _candidates_of(samples, spec, spec.num_bits, search)]


def _candidates_of(samples: ActivationSamples, spec: ActivationSpec, num_bits: int, search: str,
                   ) -> list[Candidate]:
    how = dict(symmetry=spec.symmetry, search=search, norm=spec.norm)
    if spec.mode == 'per_channel':
        return [Candidate(search_qparams(samples, num_bits, per_channel=True,
                                         bit_allocation=spec.bit_allocation, **how),
                          search=search)]
    tensor = search_qparams(samples, num_bits, **how)
    if spec.mode == 'per_tensor':
        return [Candidate(replace(tensor, unit=True), search=search)]
    by_channel = channel_qparams(samples, tensor, search, spec.norm)
    strengths = STRENGTHS if spec.strength == 'auto' else (float(spec.strength),)
    return [Candidate(interpolate_qparams(tensor, by_channel, strength), strength, search)
            for strength in strengths]


def choose_input(captures: Sequence[CallCapture], rows: LayerPositions, layer: QuantizedLayer,
                 plan: LayerPlan, method: Method, shared: QParams | None = None,
                 ) -> tuple[Candidate, ActivationSamples]:
    """Chooses how a layer's input is quantized, and returns what was seen of the input with it.

    Where the input is a residual stream in codes already, these (``shared``) are what it has.

    With ``scale_search='auto'`` candidates are found on some batches and compared on others: the
    more scales there are, the more of them clip what the images they come from did not show
    (EfficientNet-Lite0 at W8A8: strengths compared on the same images kept the class of 95.7 % of
    other images, compared on other batches of 99.3 %). The one chosen is then found again on all.
    """
    samples = merge_samples(captures, rows.team)
    if shared is not None:
        return Candidate(replace(shared, unit=True), search=SHARED), samples
    candidates = input_candidates(samples, plan.activation)
    others = rows.other_batches()
    if len(candidates) == 1 or plan.activation.scale_search != 'auto' or not others:
        return choose_candidate(candidates, rows, layer, plan, method), samples
    seen = [capture for capture in captures if capture.batch not in others]
    trials = input_candidates(merge_samples(seen, rows.team), plan.activation)
    chosen = choose_candidate(trials, rows, layer, plan, method, others)
    return candidates[next(index for index, one in enumerate(trials) if one is chosen)], samples


def choose_candidate(candidates: list[Candidate], rows: LayerPositions, layer: QuantizedLayer,
                     plan: LayerPlan, method: Method,
                     others: frozenset[int] = frozenset()) -> Candidate:
    """Returns the candidate of least output error, or the strongest that comes close to it.

    The search of each strength's scales is chosen by what rounding the inputs alone does to the
    output: beside rounded weights it would not be seen. Strengths, which change the weights too,
    are solved quickly on a part of the positions and outputs, and judged on other positions; with
    ``others`` on those of these batches, where rounding is judged too.
    """
    if len(candidates) == 1:
        return candidates[0]
    generous = plan.activation.num_bits is not None \
        and plan.activation.num_bits <= plan.weight.num_bits
    # From the likelier end.
    strengths = sorted({candidate.strength for candidate in candidates}, reverse=generous) \
        if candidates[0].strength is not None else [None]
    if layer.geometry.inputs_per_output > MOST_INPUTS_FOR_STRENGTH:
        strengths = strengths[:1]
        candidates = [one for one in candidates if one.strength == strengths[0]]
        if len(candidates) == 1:
            return candidates[0]
    trial = InputTrial(rows, layer, plan, method, others)
    tried: list[tuple[float, Candidate]] = []
    for strength in strengths:
        candidate = trial.settle_search([one for one in candidates if one.strength == strength])
        if len(strengths) == 1:
            return candidate
        tried.append((trial.solved_error(candidate), candidate))
        if len(tried) > 1 and tried[-1][0] > tried[-2][0]:
            break  # as long as the error falls
    limit = min(error for error, _ in tried) * (STRENGTH_TOLERANCE if generous else 1.0)
    return next(candidate for error, candidate in tried if error <= limit)


class InputTrial:
    """Part of a layer's positions and outputs, to compare candidates on.

    Args:
        rows, layer, plan, method, others: See ``choose_candidate``.
        most: Positions to fit to, and as many to judge on; when not given, as many as strengths
            need. ``ROWS_FOR_CLIPPING`` are enough to tell one scale from another.
    """

    def __init__(self, rows: LayerPositions, layer: QuantizedLayer, plan: LayerPlan, method: Method,
                 others: frozenset[int], most: int | None = None):
        self.geometry, self.num_bits = layer.geometry, plan.weight.num_bits
        self.method, self.team = method.quick(), rows.team
        every = max(1, self.geometry.out_channels // self.geometry.groups // OUTPUTS_FOR_STRENGTH)
        most = most or max(LEAST_ROWS_FOR_STRENGTH, min(
            ROWS_FOR_STRENGTH, ELEMENTS_FOR_STRENGTH // self.geometry.inputs_per_output))
        parts = rows.thin_apart(most, others) if others else rows.thin(most)
        self.fit, self.judge = (replace(part, y=part.y[:, ::every].contiguous())
                                for part in parts)
        self.unseen = (self.judge,) if others else (self.fit, self.judge)
        self.weight = rows.weight[:, ::every]

    def settle_search(self, candidates: list[Candidate], in_order: bool = False) -> Candidate:
        """Of candidates that differ in their search, in the order of preference.

        Args:
            candidates: At least one.
            in_order: Errors fall and then rise along them: the rest is not tried once they rise.
        """
        best = candidates[0]
        if len(candidates) > 1:
            before = self.input_error(best)
            least = before * CLIPPING_GAIN
            for candidate in candidates[1:]:
                error = self.input_error(candidate)
                if error < least:
                    best, least = candidate, error
                if in_order and error > before:
                    break
                before = error
        return best

    def input_error(self, candidate: Candidate) -> float:
        """Squared error of the float layer's outputs when its inputs are rounded.

        Less its mean where the method corrects the bias.
        """
        total = self.weight.new_zeros(self.weight.shape[0], self.weight.shape[1], 3,
                                      dtype=torch.float64)
        for part in self.unseen:
            error = self.weight @ candidate.rounding_error(part.x, self.geometry)  # (G, M, K)
            total[..., 0] += error.sum(-1, dtype=torch.float64)
            total[..., 1] += error.square().sum(-1, dtype=torch.float64)
            total[..., 2] += error.shape[-1]
        self.team.add_(total)
        error_sum, error_sq, count = total.unbind(-1)
        if self.method.bias_correction:
            error_sq = error_sq - error_sum.square() / count
        return float(error_sq.sum())

    def solved_error(self, candidate: Candidate) -> float:
        """Relative output error with weights solved quickly; no solution counts as infinite."""
        geometry, method, fit = self.geometry, self.method, self.fit
        statistics = collect_statistics(replace(fit, x=candidate.inputs(fit.x, geometry)),
                                        candidate.lowest(geometry), method.bias_correction,
                                        self.team, 'rows' in method.needs)
        weight = candidate.weight(self.weight, geometry).to(statistics.x_sum.dtype)
        _, solved = next(iter(method.candidates(statistics, weight, self.num_bits)))
        inputs = candidate.inputs(self.judge.x, geometry)
        error = output_error(solved.weight, statistics, inputs, self.judge.y, method,
                             self.team).error
        return math.inf if math.isnan(error) else error  # the guard sees it again
