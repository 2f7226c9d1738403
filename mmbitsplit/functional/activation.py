"""Scale search for a layer's input, and ECAQ's scales between one a tensor and one a channel.

Source: Bit-split paper, section 3.2, Eq. 10 to 13. Differs from source: signed and asymmetric
inputs, and scales that interpolate between per-tensor and per-channel.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.functional.affine import code_range
from mmbitsplit.functional.round_trip import round_trip_errors
from mmbitsplit.structures import QParams

# Asymmetric codes must cut the squared error of signed ones by this much to be chosen by
# 'auto': a zero point costs runtimes an extra sum a product.
ASYMMETRIC_GAIN = 0.9
SAMPLES_FOR_TENSOR = 1 << 19  # values that the search for one scale looks at, about


@dataclass(frozen=True)
class ActivationSamples:
    """What a scale search looks at.

    Args:
        values: (C, S) sampled inputs of the layer.
        low, high: (C,) smallest and largest input over everything seen, not only the samples.
    """

    values: Tensor
    low: Tensor
    high: Tensor


def search_qparams(samples: ActivationSamples, num_bits: int, *, symmetry: str = 'auto',
                   per_channel: bool = False, search: str = 'mse') -> QParams:
    """Minimises ``||x - fake_quantize(x)||^2`` over scale and zero point (paper, Eq. 11).

    Args:
        samples: Inputs of the layer.
        num_bits: 2 to 8.
        symmetry: ``'unsigned'``, ``'signed'``, ``'asymmetric'`` or ``'auto'``.
        per_channel: One scale a channel instead of one for all.
        search: ``'mse'``, or ``'minmax'`` for the range seen.

    Returns:
        Parameters of shape (C,) or (1,), ``unit=False``.

    Raises:
        ValueError: Negative inputs with ``symmetry='unsigned'``.
    """
    view = samples if per_channel else _pooled(samples)
    lowest = float(samples.low.min())
    if symmetry == 'unsigned' and lowest < 0:
        raise ValueError(f"symmetry='unsigned', but the layer's input reaches {lowest:.4g}; use "
                         "'signed', 'asymmetric' or 'auto'.")
    if symmetry == 'auto':
        if lowest >= 0:
            return _search_symmetric(view, num_bits, False, search)
        signed = _search_symmetric(view, num_bits, True, search)
        asymmetric = _search_asymmetric(view, num_bits, search)
        gain = quantization_error(view.values, asymmetric).sum() \
            / quantization_error(view.values, signed).sum()
        return asymmetric if gain < ASYMMETRIC_GAIN else signed
    if symmetry == 'asymmetric':
        return _search_asymmetric(view, num_bits, search)
    return _search_symmetric(view, num_bits, symmetry == 'signed', search)


def channel_scales(samples: ActivationSamples, tensor: QParams, search: str = 'mse') -> Tensor:
    """Finds one scale a channel for the codes and the zero point of a per-tensor quantizer.

    ECAQ moves the scales into the weights, after which one zero point must serve all channels.

    Args:
        samples: Inputs of the layer.
        tensor: The per-tensor quantizer.
        search: ``'mse'`` or ``'minmax'``.

    Returns:
        (C,) scales; a channel that is zero everywhere gets the per-tensor scale.
    """
    low_room = tensor.zero_point - tensor.quant_min  # codes below zero
    high_room = tensor.quant_max - tensor.zero_point
    needed = torch.maximum(
        torch.where(low_room > 0, -samples.low / low_room.clamp(min=1), 0.0),
        torch.where(high_room > 0, samples.high / high_room.clamp(min=1), 0.0))
    alive = needed > 0
    top = torch.where(alive, needed, tensor.scale)
    if search == 'minmax':
        return top

    def qparams(scale: Tensor) -> QParams:
        return QParams(scale, tensor.zero_point.expand_as(scale), tensor.quant_min,
                       tensor.quant_max)

    return _search_factor(samples.values, lambda factor: qparams(top * factor), top,
                          _bits(tensor)).scale


def interpolate_scales(tensor_scale: Tensor, channel_scale: Tensor, strength: float) -> Tensor:
    """Returns ``tensor_scale^(1 - strength) * channel_scale^strength``: 0 one scale, 1 ECAQ."""
    return tensor_scale.pow(1 - strength) * channel_scale.pow(strength)


def quantization_error(values: Tensor, qparams: QParams) -> Tensor:
    """Mean squared error of the round trip a channel: (C, S) to (C,) float64."""
    return _errors(values, replace(qparams, scale=qparams.scale.unsqueeze(0),
                                   zero_point=qparams.zero_point.unsqueeze(0)))[0]


def _pooled(samples: ActivationSamples) -> ActivationSamples:
    """As of one channel; of many channels fewer positions say as much about one scale."""
    every = max(1, samples.values.numel() // SAMPLES_FOR_TENSOR)
    return ActivationSamples(samples.values[:, ::every].contiguous(),
                             samples.low.min().reshape(1), samples.high.max().reshape(1))


def _search_symmetric(samples: ActivationSamples, num_bits: int, signed: bool, search: str,
                      ) -> QParams:
    smallest, largest = code_range(num_bits, signed=signed)
    top = torch.maximum(samples.high, -samples.low) if signed else samples.high
    top = torch.where(top > 0, top, 1.0) / largest  # (C,)

    def qparams(scale: Tensor) -> QParams:
        return QParams(scale, torch.zeros_like(scale), smallest, largest, unit=False)

    if search == 'minmax':
        return qparams(top)
    return _search_factor(samples.values, lambda factor: qparams(top * factor), top, num_bits)


def _search_asymmetric(samples: ActivationSamples, num_bits: int, search: str) -> QParams:
    smallest, largest = code_range(num_bits, signed=False)
    low, high = samples.low.clamp(max=0), samples.high.clamp(min=0)
    high = torch.where(high > low, high, low + 1)

    def qparams(low_factor: Tensor, high_factor: Tensor) -> QParams:
        scale = (high * high_factor - low * low_factor) / (largest - smallest)
        scale = torch.where(scale > 0, scale, (high - low) / (largest - smallest))
        zero_point = torch.round(smallest - low * low_factor / scale).clamp(smallest, largest)
        return QParams(scale, zero_point, smallest, largest, unit=False)

    low_factor = high_factor = torch.ones_like(high)
    if search == 'minmax':
        return qparams(low_factor, high_factor)
    for _ in range(2):  # one end, then the other, twice: the two hardly depend on each other
        high_factor = _best_factor(samples.values, functools.partial(qparams, low_factor), high,
                                   num_bits)
        low_factor = _best_factor(
            samples.values, functools.partial(qparams, high_factor=high_factor), high, num_bits)
    return qparams(low_factor, high_factor)


def _search_factor(values: Tensor, qparams_at, like: Tensor, num_bits: int) -> QParams:
    return qparams_at(_best_factor(values, qparams_at, like, num_bits))


def _best_factor(values: Tensor, qparams_at, like: Tensor, num_bits: int) -> Tensor:
    """Grid search from coarse to fine over the part of the range that is kept, a channel each.

    Args:
        values: (C, S).
        qparams_at: Maps (F, C) factors, F candidates, to quantization parameters.
        like: (C,), for dtype and device.
        num_bits: Few bits want a smaller part of the range.

    Returns:
        (C,) factors of least squared error.
    """
    best = torch.ones_like(like)
    lowest = {2: 0.05, 3: 0.1, 4: 0.15}.get(num_bits, 0.25)
    half_width = (1.0 - lowest) / 2
    center = torch.full_like(like, (1.0 + lowest) / 2)
    for steps in (17, 9, 9):
        offsets = torch.linspace(-half_width, half_width, steps).to(like).view(-1, 1)
        factors = torch.cat([best.unsqueeze(0), (center + offsets).clamp(lowest, 1.0)])  # (F, C)
        errors = _errors(values, qparams_at(factors))
        if like.numel() == 1:  # one scale for all channels
            errors = errors.mean(1, keepdim=True)
        best = factors.gather(0, errors.argmin(0, keepdim=True))[0]
        center, half_width = best, 2 * half_width / (steps - 1)
    return best


def _errors(values: Tensor, qparams: QParams) -> Tensor:
    """Mean squared errors of candidates: values (C, S), scales (F, C) or (F, 1), to (F, C)."""
    low, high = (bound - qparams.zero_point for bound in (qparams.quant_min, qparams.quant_max))
    return round_trip_errors(values, *(part.to(values) for part in (qparams.scale, low, high))
                             ) / values.shape[1]


def _bits(qparams: QParams) -> int:
    return (qparams.quant_max - qparams.quant_min).bit_length()
