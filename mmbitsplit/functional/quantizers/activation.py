"""Scale search for a layer's input, and ECAQ's scales between one a tensor and one a channel.

Source: Bit-split paper, section 3.2, Eq. 10 to 13. Differs from source: signed and asymmetric
inputs, the latter with a zero point a channel, and scales that interpolate between per-tensor and
per-channel.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.functional.kernels.round_trip import round_trip_errors
from mmbitsplit.functional.quantizers.aciq import allocate_bits, spread
from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.input_ranges import (
    ACIQ,
    RANGE_SEARCHES,
    ActivationSamples,
    input_range,
)
from mmbitsplit.structures import QParams

# Asymmetric codes must cut the squared error of signed ones by this much to be chosen by
# 'auto': a zero point costs runtimes an extra sum a product.
ASYMMETRIC_GAIN = 0.9
MOST_SAMPLES_FOR_NORM = 1 << 18  # elements; other norms than 2 have no compiled loop


def search_qparams(samples: ActivationSamples, num_bits: int, *, symmetry: str = 'auto',
                   per_channel: bool = False, search: str = 'mse', norm: float = 3.0,
                   bit_allocation: str = 'uniform') -> QParams:
    """Finds scale and zero point: by default of least ``||x - fake_quantize(x)||^2`` (Eq. 11).

    Args:
        samples: Inputs of the layer.
        num_bits: 2 to 8.
        symmetry: ``'unsigned'``, ``'signed'``, ``'asymmetric'`` or ``'auto'``.
        per_channel: One scale a channel instead of one for all.
        search: ``'mse'``; ``'lp'`` for another norm of the error; ``'minmax'`` for the range
            seen; ``'kl'``, ``'aciq_gauss'``, ``'aciq_laplace'``, see ``input_range``.
        norm: p of ``search='lp'``.
        bit_allocation: ``'aciq'`` gives channels with a scale of their own widths of their own,
            ``num_bits`` on average (``aciq.allocate_bits``).

    Returns:
        Parameters of shape (C,) or (1,), ``unit=False``.

    Raises:
        ValueError: Negative inputs with ``symmetry='unsigned'``.
    """
    view = samples if per_channel else samples.pooled()
    how = Search(search, norm)
    symmetry, found = _choose_symmetry(view, num_bits, symmetry, how)
    if per_channel and bit_allocation == 'aciq':
        return _search_mixed(view, num_bits, symmetry, how)
    return found or _search(view, num_bits, symmetry, how)


@dataclass(frozen=True)
class Search:
    """How a scale is found; see ``search_qparams``."""

    kind: str = 'mse'
    norm: float = 3.0


def _choose_symmetry(view: ActivationSamples, num_bits: int, symmetry: str, search: Search,
                     ) -> tuple[str, QParams | None]:
    """Resolves ``'auto'``; also returns the parameters where that took finding them."""
    lowest = float(view.low.min())
    if symmetry == 'unsigned' and lowest < 0:
        raise ValueError(f"symmetry='unsigned', but the layer's input reaches {lowest:.4g}; use "
                         "'signed', 'asymmetric' or 'auto'.")
    if symmetry != 'auto':
        return symmetry, None
    if lowest >= 0:
        return 'unsigned', None
    if search.kind == 'kl':  # one threshold around zero
        return 'signed', None
    found = {one: _search(view, num_bits, one, search) for one in ('signed', 'asymmetric')}
    errors = {one: quantization_error(view.values, qparams).sum()
              for one, qparams in found.items()}
    best = 'asymmetric' if errors['asymmetric'] / errors['signed'] < ASYMMETRIC_GAIN else 'signed'
    return best, found[best]


def _search(view: ActivationSamples, num_bits: int, symmetry: str, search: Search) -> QParams:
    if symmetry == 'asymmetric':
        return _search_asymmetric(view, num_bits, search)
    return _search_symmetric(view, num_bits, symmetry == 'signed', search)


def _search_mixed(view: ActivationSamples, num_bits: int, symmetry: str, search: Search) -> QParams:
    """One scale and one width a channel; channels of a width are searched together."""
    distribution = ACIQ.get(search.kind, 'gauss')
    widths = allocate_bits(spread(view.values, distribution, rectified=symmetry == 'unsigned',
                                  centred=symmetry == 'asymmetric'), num_bits)
    scale, zero_point, channel_max = (torch.empty_like(view.high) for _ in range(3))
    for width in widths.unique().tolist():
        chosen = widths == width
        found = _search(view.channels(chosen), width, symmetry, search)
        scale[chosen], zero_point[chosen] = found.scale, found.zero_point
        channel_max[chosen] = found.quant_max
    return QParams(scale, zero_point, found.quant_min, found.quant_max, unit=False,
                   channel_max=channel_max)


def channel_qparams(samples: ActivationSamples, tensor: QParams, search: str = 'mse',
                    norm: float = 3.0) -> QParams:
    """Finds one scale a channel for the codes of a per-tensor quantizer: ECAQ's.

    Where codes are asymmetric, every channel has a zero point of its own too: the sum of
    ``w_c s_c (q_c - z_c)`` over channels is one product of codes less a constant, which the bias
    holds. One zero point for all would leave a channel as many codes below zero as the widest
    channel needs there, one of 255 behind a SiLU that reaches 70.

    Args:
        samples: Inputs of the layer.
        tensor: The per-tensor quantizer.
        search, norm: See ``search_qparams``.

    Returns:
        Parameters of shape (C,), ``unit=True``; a channel that is zero everywhere gets those of
        the tensor.
    """
    if tensor.quant_min >= 0 and float(samples.low.min()) < 0:
        found = _search_asymmetric(samples, _bits(tensor), Search(search, norm))
        dead = (samples.low >= 0) & (samples.high <= 0)
        scale = torch.where(dead, tensor.scale.to(found.scale), found.scale)
        zero_point = torch.where(dead, tensor.zero_point.to(scale), found.zero_point)
    else:
        scale = _channel_scales(samples, tensor, search, norm)
        zero_point = tensor.zero_point.expand_as(scale)
    return QParams(scale, zero_point, tensor.quant_min, tensor.quant_max, unit=True)


def _channel_scales(samples: ActivationSamples, tensor: QParams, search: str, norm: float,
                    ) -> Tensor:
    """(C,) scales at the zero point of the tensor."""
    low, high = samples.low, samples.high
    if search in RANGE_SEARCHES:
        symmetry = 'signed' if tensor.quant_min < 0 else 'unsigned'
        low, high = input_range(samples, _bits(tensor), symmetry, search)
    low_room = tensor.zero_point - tensor.quant_min  # codes below zero
    high_room = tensor.quant_max - tensor.zero_point
    needed = torch.maximum(
        torch.where(low_room > 0, -low / low_room.clamp(min=1), 0.0),
        torch.where(high_room > 0, high / high_room.clamp(min=1), 0.0))
    top = torch.where(needed > 0, needed, tensor.scale)
    if search in RANGE_SEARCHES:
        return top

    def qparams(scale: Tensor) -> QParams:
        return QParams(scale, tensor.zero_point.expand_as(scale), tensor.quant_min,
                       tensor.quant_max)

    return _search_factor(samples.values, lambda factor: qparams(top * factor), top,
                          _bits(tensor), Search(search, norm)).scale


def interpolate_qparams(tensor: QParams, by_channel: QParams, strength: float) -> QParams:
    """Goes from one scale for all (strength 0) to ECAQ's one a channel (1).

    Scales are ``tensor^(1 - strength) * by_channel^strength``. In between, a channel's zero point
    is its own low end in steps of its scale: where the scale grew, both ends of its range stay
    covered.

    Args:
        tensor: One scale and zero point.
        by_channel: (C,) of both, for the same codes.
        strength: 0 to 1.
    """
    scale = tensor.scale.pow(1 - strength) * by_channel.scale.pow(strength)
    if strength == 0 or not bool((by_channel.zero_point != tensor.zero_point).any()):
        zero_point = tensor.zero_point.expand_as(scale)
    else:
        below = (by_channel.zero_point - by_channel.quant_min) * by_channel.scale
        zero_point = (by_channel.quant_min + torch.round(below / scale)).clamp(
            by_channel.quant_min, by_channel.quant_max)
    return replace(by_channel, scale=scale, zero_point=zero_point)


def quantization_error(values: Tensor, qparams: QParams) -> Tensor:
    """Mean squared error of the round trip a channel: (C, S) to (C,) float64."""
    return _errors(values, replace(qparams, scale=qparams.scale.unsqueeze(0),
                                   zero_point=qparams.zero_point.unsqueeze(0)))[0]


def _search_symmetric(samples: ActivationSamples, num_bits: int, signed: bool, search: Search,
                      ) -> QParams:
    smallest, largest = code_range(num_bits, signed=signed)
    low, high = samples.low, samples.high
    if search.kind in RANGE_SEARCHES:
        low, high = input_range(samples, num_bits, 'signed' if signed else 'unsigned', search.kind)
    top = torch.maximum(high, -low) if signed else high
    top = torch.where(top > 0, top, 1.0) / largest  # (C,)

    def qparams(scale: Tensor) -> QParams:
        return QParams(scale, torch.zeros_like(scale), smallest, largest, unit=False)

    if search.kind in RANGE_SEARCHES:
        return qparams(top)
    return _search_factor(samples.values, lambda factor: qparams(top * factor), top, num_bits,
                          search)


def _search_asymmetric(samples: ActivationSamples, num_bits: int, search: Search) -> QParams:
    smallest, largest = code_range(num_bits, signed=False)
    low, high = samples.low, samples.high
    if search.kind in RANGE_SEARCHES:
        low, high = input_range(samples, num_bits, 'asymmetric', search.kind)
    low, high = low.clamp(max=0), high.clamp(min=0)
    high = torch.where(high > low, high, low + 1)

    def qparams(low_factor: Tensor, high_factor: Tensor) -> QParams:
        scale = (high * high_factor - low * low_factor) / (largest - smallest)
        scale = torch.where(scale > 0, scale, (high - low) / (largest - smallest))
        zero_point = torch.round(smallest - low * low_factor / scale).clamp(smallest, largest)
        return QParams(scale, zero_point, smallest, largest, unit=False)

    low_factor = high_factor = torch.ones_like(high)
    if search.kind in RANGE_SEARCHES:
        return qparams(low_factor, high_factor)
    for _ in range(2):  # one end, then the other, twice: the two hardly depend on each other
        high_factor = _best_factor(samples.values, functools.partial(qparams, low_factor), high,
                                   num_bits, search)
        low_factor = _best_factor(
            samples.values, functools.partial(qparams, high_factor=high_factor), high, num_bits,
            search)
    return qparams(low_factor, high_factor)


def _search_factor(values: Tensor, qparams_at: Callable[[Tensor], QParams], like: Tensor,
                   num_bits: int, search: Search) -> QParams:
    return qparams_at(_best_factor(values, qparams_at, like, num_bits, search))


def _best_factor(values: Tensor, qparams_at: Callable[[Tensor], QParams], like: Tensor,
                 num_bits: int, search: Search) -> Tensor:
    """Grid search from coarse to fine over the part of the range that is kept, a channel each.

    Args:
        values: (C, S).
        qparams_at: Maps (F, C) factors, F candidates, to quantization parameters.
        like: (C,), for dtype and device.
        num_bits: Few bits want a smaller part of the range.
        search: ``'mse'`` or ``'lp'``.

    Returns:
        (C,) factors of least error.
    """
    norm = search.norm if search.kind == 'lp' else 2.0
    if norm != 2:
        values = values[:, ::-(-values.numel() // MOST_SAMPLES_FOR_NORM)]
    best = torch.ones_like(like)
    lowest = {2: 0.05, 3: 0.1, 4: 0.15}.get(num_bits, 0.25)
    half_width = (1.0 - lowest) / 2
    center = torch.full_like(like, (1.0 + lowest) / 2)
    for steps in (17, 9, 9):
        offsets = torch.linspace(-half_width, half_width, steps).to(like).view(-1, 1)
        factors = torch.cat([best.unsqueeze(0), (center + offsets).clamp(lowest, 1.0)])  # (F, C)
        errors = _errors(values, qparams_at(factors), norm)
        if like.numel() == 1:  # one scale for all channels
            errors = errors.mean(1, keepdim=True)
        best = factors.gather(0, errors.argmin(0, keepdim=True))[0]
        center, half_width = best, 2 * half_width / (steps - 1)
    return best


def _errors(values: Tensor, qparams: QParams, norm: float = 2.0) -> Tensor:
    """Mean powers of errors of candidates: values (C, S), scales (F, C) or (F, 1), to (F, C)."""
    low, high = (bound - qparams.zero_point for bound in qparams.limits())
    return round_trip_errors(values, qparams.scale.to(values), low.to(values), high.to(values),
                             norm) / values.shape[1]


def _bits(qparams: QParams) -> int:
    return (qparams.quant_max - qparams.quant_min).bit_length()
