"""How a layer's input is quantized at several widths: one pattern over channels, a scale each.

Where a weight carries the scales of its inputs, it is one weight for all widths of them, so these
differ by a factor alone. The pattern (how far ECAQ goes, which search) is that of the narrowest,
where it matters most; how much of the range each wider one clips is chosen by what rounding the
inputs does to the output.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmbitsplit.functional import ActivationSamples, code_range
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture, merge_samples
from mmbitsplit.solving.input_scales import (
    ROWS_FOR_CLIPPING,
    SHARED,
    Candidate,
    InputTrial,
    choose_input,
)
from mmbitsplit.solving.positions import LayerPositions
from mmbitsplit.structures import LayerPlan, QParams

CLIPPED = (1.0, 0.87, 0.76, 0.66, 0.57, 0.5)  # parts of the whole range that are tried


def choose_inputs(captures: Sequence[Sequence[CallCapture]], rows: Sequence[LayerPositions],
                  widths: Sequence[int | None], layer: QuantizedLayer, plan: LayerPlan,
                  method: Method, shared: Sequence[QParams] = (),
                  ) -> tuple[list[Candidate], ActivationSamples]:
    """Chooses how the input is quantized at each of several pairs of widths.

    Args:
        captures: Of each pair.
        rows: The same with targets.
        widths: Of the input in each pair; a width may come several times.
        layer, plan, method: See ``input_scales.choose_input``.
        shared: Of the residual stream that it reads, at each of these widths; none where it reads
            none.

    Returns:
        One a pair, alike where widths are, and what was seen of the input at the widest.
    """
    last = max(range(len(widths)), key=lambda index: widths[index] or 0)
    samples = merge_samples(captures[last], rows[last].team)
    if widths[last] is None:
        return [Candidate(None)] * len(widths), samples
    if shared:
        known = {one.num_bits: Candidate(replace(one, unit=True), search=SHARED) for one in shared}
        return [known[bits] for bits in widths if bits is not None], samples
    first = {bits: widths.index(bits) for bits in sorted({bits for bits in widths if bits})}
    narrowest = min(first)

    def alone(bits: int) -> Candidate:
        index = first[bits]
        own = replace(plan, activation=replace(plan.activation, num_bits=bits),
                      weight=replace(plan.weight, num_bits=_weight_bits(plan, index)))
        return choose_input(captures[index], rows[index], layer, own, method)[0]

    chosen = {narrowest: alone(narrowest)}
    trial, seen = None, None  # of the positions of the width before, which may be the same
    for bits, index in first.items():
        if bits == narrowest:
            continue
        pattern = chosen[narrowest]
        if not pattern.qparams.unit:
            chosen[bits] = alone(bits)
            continue
        if trial is None or rows[index] is not seen:
            seen = rows[index]
            trial = InputTrial(seen, layer, plan, method, seen.other_batches(),
                               ROWS_FOR_CLIPPING)
        before = chosen[max(one for one in chosen if one < bits)]
        chosen[bits] = _scaled(pattern, before, bits, samples if captures[index] is captures[last]
                               else merge_samples(captures[index], seen.team), trial, plan)
    return [chosen[bits] for bits in _like_widest(chosen, widths)], samples


def _like_widest(chosen: dict[int, Candidate], widths: Sequence[int]) -> Sequence[int]:
    """Gives narrower zero points the rule ``round(zero_point / factor)`` of the widest's."""
    widest = chosen[max(chosen)].qparams
    for bits, one in chosen.items():
        if one.qparams.unit and bits < max(chosen):
            factor = one.qparams.scale / widest.scale
            chosen[bits] = replace(one, qparams=replace(
                one.qparams, zero_point=_within((widest.zero_point / factor).round(),
                                                one.qparams)))
    return widths


def _weight_bits(plan: LayerPlan, index: int) -> int:
    return plan.widths[min(index, len(plan.widths) - 1)] if plan.widths else plan.weight.num_bits


def _scaled(pattern: Candidate, before: Candidate, bits: int, samples: ActivationSamples,
            trial: InputTrial, plan: LayerPlan) -> Candidate:
    """The pattern at another width, its scale by the error of rounding.

    Its range is no less than that of the width before: the finer the steps, the less is won by
    clipping, which costs the same.
    """
    whole = _covering(pattern.qparams, bits, samples)
    least = min(float(_like(before.qparams, bits).scale[0] / whole.scale[0]), 1.0)
    parts = sorted({part for part in (*CLIPPED, least) if part >= least}, reverse=True)
    candidates = [Candidate(_times(whole, part), pattern.strength,
                            'minmax' if part == 1.0 else 'mse') for part in parts]
    searches = {'minmax': candidates[:1], 'mse': candidates[1:]}
    if plan.activation.scale_search in searches and searches[plan.activation.scale_search]:
        candidates = searches[plan.activation.scale_search]
    return trial.settle_search(candidates, in_order=True)


def _like(qparams: QParams, bits: int) -> QParams:
    """The same range in so many bits."""
    signed = qparams.quant_min < 0
    low, high = code_range(bits, signed=signed)
    scale = qparams.scale * (qparams.quant_max - qparams.quant_min) / (high - low)
    return _at(qparams, scale, low, high)


def _covering(qparams: QParams, bits: int, samples: ActivationSamples) -> QParams:
    """The same pattern in so many bits, wide enough for all that was seen."""
    narrow = _like(qparams, bits)
    high = (samples.high / (narrow.scale * (narrow.quant_max - narrow.zero_point).clamp(min=1)))
    low = (samples.low / (narrow.scale * (narrow.quant_min - narrow.zero_point).clamp(max=-1)))
    low = torch.where(narrow.zero_point > narrow.quant_min, low, 0.0) \
        if narrow.quant_min == 0 else low
    most = torch.maximum(high, low).amax()
    return _times(narrow, float(most) if float(most) > 0 else 1.0)


def _times(qparams: QParams, factor: float) -> QParams:
    """Scales times a factor, the zero points where the range then begins alike."""
    return _at(qparams, qparams.scale * factor, qparams.quant_min, qparams.quant_max)


def _at(qparams: QParams, scale: Tensor, low: int, high: int) -> QParams:
    made = replace(qparams, scale=scale, quant_min=low, quant_max=high)
    if not bool((qparams.zero_point != 0).any()):
        return made
    shares = (qparams.zero_point - qparams.quant_min) / (qparams.quant_max - qparams.quant_min)
    return replace(made, zero_point=_within((low + shares * (high - low)).round(), made))


def _within(zero_point: Tensor, qparams: QParams) -> Tensor:
    return zero_point.clamp(qparams.quant_min, qparams.quant_max)
