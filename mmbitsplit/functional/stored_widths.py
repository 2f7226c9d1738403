"""What a file holds of a layer of several widths: one code for all, and a few bits a channel and
width for what differs.

Codes nest: those of a width are the leading bits of those of the widest. So a file has the codes of
the narrowest, and for each further width the bits that it adds (``pack_nested``). Scales and biases
of all but the widest are stored beside those of the widest, in whole steps:

- scales (``scale_codes``): steps of 1/96 octave from what nesting alone would give,
  ``widest_scale * 2^(widest - width)``; two of them at 4 bits and four below, where codes are small
  and their sum feels less of a scale;
- biases (``bias_codes``): steps of a power of two a layer and width from the bias of the widest,
  an eighth to a quarter of what biases differ by (root of the mean square).

Most steps of a layer and width are near each other, the wider the nearer: ``pack_rice`` holds both
in 6 to 8 bits a channel and width.

Who makes a solution calls ``solution_as_stored`` on it (or ``scale_as_stored`` and
``bias_as_stored`` on its values): memory and file then agree bit for bit. All leave alone what they
have made once. What they did not make is stored whole, four bytes each. Offsets that are half a
step take no room, nor do inputs that ``narrower_qparams`` made.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.nesting import midrise_offset, narrower_qparams
from mmbitsplit.structures.solution import LayerSolution, Nesting, QParams

SCALE_STEPS = 96  # an octave: at most 0.36 % off, over 2.5 times more and less
ZERO_SCALE = -128  # the code of a channel that a width does without
# Rounding a scale moves weights by a part of their code. With these steps that adds less than half
# a percent to the mean square error of rounding codes up to 5 bits, were all codes as frequent.
_SHIFTS = {2: 2, 3: 2, 4: 1}
BIAS_BITS = 6  # of files of format 3
_MOST_BIAS = 1023
NO_STEP = -128  # the exponent where biases are those of the widest


# Codes.

def pack_nested(codes: Tensor, widths: Sequence[int], nesting: Nesting) -> list[Tensor]:
    """Packs nested codes, so that each width takes what narrower ones have and a part of its own.

    Args:
        codes: Any shape, int8, of the widest.
        widths: Rising, the last that of the codes.
        nesting: ``'floor'``: two's complement, a narrower code is ``code >> k``; ``'planes'``: sign
            and magnitude, it is ``sign * (|code| >> k)``.

    Returns:
        A part a width, uint8 of ceil(n * bits / 8) bytes: the narrowest's codes, then the bits that
        each width adds, lowest bit first, without a gap. Of ``'planes'`` the first part has a
        code's magnitude and above it the sign of the widest.

    Raises:
        ValueError: Widths do not rise, or a code is wider than the widest.
    """
    _check_widths(widths)
    widest, narrowest = widths[-1], widths[0]
    values = codes.detach().cpu().reshape(-1).to(torch.int16)
    low, high = -2 ** (widest - 1), 2 ** (widest - 1) - 1
    if nesting == 'planes':
        low = -high
    if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
        raise ValueError(f'codes from {int(values.min())} to {int(values.max())} are not of '
                         f'{widest} bits, which hold {low} to {high}.')
    patterns = values & 2 ** widest - 1
    if nesting == 'planes':
        patterns = values.abs() | (values < 0).to(torch.int16) << widest - 1
    parts, before = [], 0
    for width in (narrowest, *widths[1:]):
        added = width - before
        parts.append(pack_bits(patterns >> widest - width & 2 ** added - 1, added))
        before = width
    return parts


def unpack_nested(parts: Sequence[Tensor], widths: Sequence[int], nesting: Nesting,
                  num_codes: int) -> Tensor:
    """Codes of the widest of the widths whose parts are given: inverse of ``pack_nested``.

    Args:
        parts: Of the first ``len(parts)`` widths.
        widths: All of them or as many.
        nesting: As packed.
        num_codes: n.

    Returns:
        (n,) int8.
    """
    patterns, before = torch.zeros(num_codes, dtype=torch.int16), 0
    for part, width in zip(parts, widths):
        bits = unpack_bits(part, width - before, num_codes)
        patterns, before = patterns << width - before | bits, width
    half = 2 ** (before - 1)
    if nesting == 'planes':
        magnitude = patterns & half - 1
        return torch.where(patterns >= half, -magnitude, magnitude).to(torch.int8)
    return ((patterns ^ half) - half).to(torch.int8)


def pack_bits(values: Tensor, num_bits: int) -> Tensor:
    """Packs numbers of some bits without a gap, lowest bit first.

    Args:
        values: (n,) whole, from 0 to 2^b - 1.
        num_bits: b, 1 to 8.

    Returns:
        (ceil(n * b / 8),) uint8, filled up with zero bits.
    """
    octets = values.to(torch.uint8).contiguous().numpy()[:, None]
    bits = np.unpackbits(octets, axis=1, count=num_bits, bitorder='little')
    return torch.from_numpy(np.packbits(bits, bitorder='little'))


def unpack_bits(packed: Tensor, num_bits: int, count: int) -> Tensor:
    """Inverse of ``pack_bits``: (count,) int16.

    Raises:
        ValueError: There are more or fewer bytes than so many numbers take.
    """
    expected = bytes_of(count, num_bits)
    if packed.numel() != expected:
        raise ValueError(f'{count} numbers of {num_bits} bits take {expected} bytes, got '
                         f'{packed.numel()}.')
    bits = np.unpackbits(packed.cpu().contiguous().numpy(), count=count * num_bits,
                         bitorder='little').reshape(count, num_bits)
    values = np.packbits(bits, axis=1, bitorder='little')[:, 0] if count else bits[:, :0].sum(1)
    return torch.from_numpy(values.astype(np.int16))


def bytes_of(count: int, num_bits: int) -> int:
    """Bytes that numbers take without a gap."""
    return -(-count * num_bits // 8)


# Scales.

def scale_codes(scale: Tensor, widest_scale: Tensor, steps: int, coarse: int = 1) -> Tensor:
    """The nearest whole steps of scales beside those of the widest width.

    Args:
        scale: Any shape, of a width, real units a code step.
        widest_scale: The same, of the widest.
        steps: k, how many bits narrower it is.
        coarse: Codes are multiples of this.

    Returns:
        int8; a scale that is not positive becomes ``ZERO_SCALE``.
    """
    ratio = scale.detach().double() / (widest_scale.detach().double() * 2.0 ** steps)
    code = (torch.log2(ratio) * (SCALE_STEPS / coarse)).round().nan_to_num(0.0, 127.0, -127.0)
    most = 127 // coarse
    code = (code.clamp(-most, most) * coarse).to(torch.int8)
    return torch.where(scale <= 0, torch.full_like(code, ZERO_SCALE), code)


def scale_of_codes(codes: Tensor, widest_scale: Tensor, steps: int) -> Tensor:
    """Float32 scales: inverse of ``scale_codes``."""
    factors = _factors().to(widest_scale.device)[codes.long() + 128]
    return widest_scale.detach().float() * 2.0 ** steps * factors


def scale_as_stored(scale: Tensor, widest_scale: Tensor, steps: int, num_bits: int) -> Tensor:
    """Float32 scales as a file gives them back.

    Between 0.4 and 2.5 times ``widest_scale * 2^steps`` at most ``scale_error(num_bits)`` off;
    beyond, the nearest that there is.

    Args:
        scale, widest_scale, steps: As of ``scale_codes``.
        num_bits: Of the width.
    """
    codes = scale_codes(scale, widest_scale, steps, 2 ** _SHIFTS.get(num_bits, 0))
    return scale_of_codes(codes, widest_scale, steps)


def scale_error(num_bits: int) -> float:
    """How far off a stored scale of a width may be, as a part of it."""
    return 0.004 * 2 ** _SHIFTS.get(num_bits, 0)


@cache
def _factors() -> Tensor:
    """(256,) what the codes from -128 to 127 multiply by."""
    # Python's powers, rounded to float32: the same on every machine.
    return torch.tensor([0.0, *(2.0 ** (code / SCALE_STEPS) for code in range(-127, 128))],
                        dtype=torch.float64).float()


# Biases.

def bias_codes(bias: Tensor, widest_bias: Tensor) -> tuple[Tensor, int]:
    """The nearest whole steps of biases beside those of the widest width.

    Args:
        bias: Any shape, of a width.
        widest_bias: The same, of the widest.

    Returns:
        int16 from -1023 to 1023, and the exponent e of the step 2^e: the largest that makes no
        difference where there is one; else an eighth to a quarter of the root mean square of the
        differences, and no less than what float32 can add to the largest bias.
    """
    away = bias.detach().double() - widest_bias.detach().double()
    most = float(away.abs().max()) if away.numel() else 0.0
    if most == 0:
        return torch.zeros_like(bias, dtype=torch.int16), NO_STEP
    size = float(away.square().mean().sqrt())
    exponent = max(math.floor(math.log2(size / 4)), math.ceil(math.log2(most / _MOST_BIAS)))
    # Sums are rounded to float32; to a small part of a step, so that codes come back.
    largest = float(widest_bias.detach().abs().max())
    least = min(max(math.frexp(largest)[1] - 21 if largest else -126, -126), 120)
    exponent = min(max(exponent, least), 120)
    finest, coarsest = max(exponent - 5, least), min(math.ceil(math.log2(most)) + 1, 120)
    for coarser in range(coarsest, finest - 1, -1):
        codes = _whole_steps(away, coarser)
        if codes.any() and torch.equal(
                bias_of_codes(codes, coarser, widest_bias).to(bias.dtype), bias.detach()):
            return codes, coarser
    codes = _whole_steps(away, exponent)
    return (codes, exponent) if codes.any() else (codes, NO_STEP)


def _whole_steps(away: Tensor, exponent: int) -> Tensor:
    return (away / 2.0 ** exponent).round().clamp(-_MOST_BIAS, _MOST_BIAS).to(torch.int16)


def bias_of_codes(codes: Tensor, exponent: int, widest_bias: Tensor) -> Tensor:
    """Float32 biases: inverse of ``bias_codes``."""
    if exponent == NO_STEP:
        return widest_bias.detach().float().clone()
    return widest_bias.detach().float() + codes.float() * 2.0 ** exponent


def bias_as_stored(bias: Tensor, widest_bias: Tensor) -> Tensor:
    """Float32 biases as a file gives them back; arguments as of ``bias_codes``.

    Off by at most an eighth of the root mean square of the differences.
    """
    return bias_of_codes(*bias_codes(bias, widest_bias), widest_bias)


def solution_as_stored(solution: LayerSolution) -> LayerSolution:
    """A layer's solution of several nested widths as a file gives it back.

    Narrower scales and biases in whole steps, offsets half a step where codes are ``'floor'``,
    narrower ``unit`` inputs by ``narrower_qparams``. A width with a scale out of reach of steps
    keeps its scales, and takes the room of them.

    Args:
        solution: Of the widest, with the others; returned as it is where codes do not nest.
    """
    if solution.nesting is None:
        return solution
    return replace(
        solution, narrower=tuple(_width_as_stored(one, solution) for one in solution.narrower),
        narrower_inputs=tuple(_input_as_stored(one, solution.qparams)
                              for one in solution.narrower_inputs))


def _width_as_stored(one: LayerSolution, widest: LayerSolution) -> LayerSolution:
    scale = scale_as_stored(one.weight_scale, widest.weight_scale, widest.num_bits - one.num_bits,
                            one.num_bits)
    bias, offset = one.bias, one.weight_offset
    most = scale_error(one.num_bits) * one.weight_scale.abs()
    if bool(((scale - one.weight_scale).abs() > most).any()):
        scale = one.weight_scale
    elif widest.nesting == 'floor':
        offset = midrise_offset(scale)
    if bias is not None and widest.bias is not None:
        bias = bias_as_stored(bias, widest.bias).to(bias.dtype)
    return replace(one, weight_scale=scale, weight_offset=offset, bias=bias)


def _input_as_stored(one: QParams, widest: QParams | None) -> QParams:
    if widest is None or not one.unit or one.channel_max is not None \
            or one.scale.shape != widest.scale.shape:
        return one
    made = narrower_qparams(widest, float(one.scale[0].double() / widest.scale[0].double()),
                            one.num_bits)
    alike = (made.quant_min, made.quant_max) == (one.quant_min, one.quant_max) \
        and torch.equal(made.zero_point.float(), one.zero_point.float()) \
        and torch.allclose(made.scale, one.scale, rtol=1e-5, atol=0)
    return made if alike else one


def _check_widths(widths: Sequence[int]) -> None:
    if not widths or list(widths) != sorted(set(widths)) or not 2 <= widths[0] <= widths[-1] <= 8:
        raise ValueError(f'widths={list(widths)!r} are not supported; give whole numbers from 2 to '
                         '8, rising.')
