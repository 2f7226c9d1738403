"""Products of bytes with whole sums on GPUs: what kernels are given, and how torch itself does it.

``triton_products`` has kernels with the same names. What is here is their oracle, and stands in
where there is no Triton: it needs memory for each window of the input (unfold) and for the sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Channels are padded to a multiple of this, the fewest that a product of bytes takes at once.
CHANNELS = 32
ROWS = 32  # ``torch._int_mm`` takes more than 16 rows and multiples of 8 columns


@dataclass(frozen=True)
class Rounding:
    """Real values to bytes: ``clamp(round(x / scale), low, high) + shift``.

    Args:
        scale, low, high: (n,) float32, n = 1 or one for each entry of ``along``; low and high are
            codes less zero point.
        shift: (n,) int32: the byte that stands for zero, from -128 to 127.
        along: What there is one of for each: a ``'channel'``, or a ``'head'`` of a product.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    shift: Tensor
    along: Literal['channel', 'head'] = 'channel'


@dataclass(frozen=True)
class Windows:
    """Which inputs an output is made of; a linear layer has windows of one place.

    Args:
        kernel, stride, dilation: (height, width) each.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output, of an input with its padding."""
        rows, columns = (
            (size - (kernel - 1) * dilation - 1) // stride + 1 for size, kernel, stride, dilation
            in zip((height, width), self.kernel, self.stride, self.dilation))
        return rows, columns


@dataclass(frozen=True)
class ByteWeight:
    """Codes of a weight as kernels take them.

    Args:
        bytes: (out_channels, taps, padded channels) int8 contiguous; or half as many bytes of two
            codes: the first half of a tap's channels in the low bits.
        packed: Whether there are two codes in a byte.
        channels: Without padding.
    """

    bytes: Tensor
    packed: bool
    channels: int

    @property
    def padded(self) -> int:
        """Channels that inputs must have."""
        return int(self.bytes.shape[2]) * (2 if self.packed else 1)

    def unpacked(self) -> Tensor:
        """(out_channels, taps, padded channels) int8."""
        if not self.packed:
            return self.bytes
        return torch.cat([(self.bytes << 4) >> 4, self.bytes >> 4], 2)

    def codes(self) -> Tensor:
        """(out_channels, taps, channels) int8."""
        return self.unpacked()[..., :self.channels].contiguous()


@dataclass(frozen=True)
class Scaling:
    """What becomes of the sums: ``(sums + correction) * scale + bias``, with ``offset`` more.

    Args:
        scale: (out_channels,) float32.
        correction: (out_channels,) int32: what the bytes that stand for zero add, negated.
        bias: (out_channels,) float32, or ``None``.
        offset: (out_channels,) float32 that the sum of a window's inputs is multiplied by, or
            ``None``.
        zeros: What the bytes that stand for zero add to that sum.
        relu: Whether negative outputs become 0.
        dtype: Of the output.
    """

    scale: Tensor
    correction: Tensor
    bias: Tensor | None = None
    offset: Tensor | None = None
    zeros: int = 0
    relu: bool = False
    dtype: torch.dtype = torch.float32


def pack_weight(codes: Tensor, four_bits: bool) -> ByteWeight:
    """Codes for kernels, with zeros for channels that there are not.

    Args:
        codes: (out_channels, taps, channels) int8.
        four_bits: Two in a byte, where that takes no more padding; codes are from -8 to 7 then.
    """
    channels = codes.shape[2]
    padded = round_up(channels, CHANNELS)
    packed = four_bits and padded % (2 * CHANNELS) == 0
    codes = F.pad(codes, (0, padded - channels)).contiguous()
    if not packed:
        return ByteWeight(codes, False, channels)
    low, high = codes.chunk(2, 2)
    return ByteWeight(((high << 4) | (low & 15)).contiguous(), True, channels)


def round_bytes(x: Tensor, rounding: Rounding, padding: Sequence[int] = (0, 0),
                padded: int | None = None) -> tuple[Tensor, Tensor]:
    """Rounds values to bytes, channels last, with their padding.

    Args:
        x: (A, H, W, C) any strides: images, or (batch, heads, rows, columns).
        rounding: How.
        padding: (height, width) at both sides, with the bytes that stand for zero.
        padded: Channels of the result, those beyond C with bytes 0; the next multiple of
            ``CHANNELS`` when not given.

    Returns:
        int8 (A, H + 2 height, W + 2 width, padded), contiguous, and (1,) float32 for the product:
        0, or NaN where one of the values is not a number.
    """
    padded = round_up(x.shape[3], CHANNELS) if padded is None else padded
    scale, low, high, shift = (_aligned(value, rounding) for value in (
        rounding.scale, rounding.low, rounding.high, rounding.shift))
    rows, columns = padding
    x = F.pad(x.to(torch.float32), (0, 0, columns, columns, rows, rows))
    codes = torch.div(x, scale).round_().clamp_(low, high)
    missing = codes.isnan().any()
    bytes_ = codes.nan_to_num_(0).add_(shift).to(torch.int8)
    found = torch.where(missing, torch.nan, 0.0).to(torch.float32).view(1)
    return F.pad(bytes_, (0, padded - x.shape[3])).contiguous(), found


def multiply(weight: ByteWeight, bytes_: Tensor, found: Tensor, windows: Windows,
             scaling: Scaling) -> Tensor:
    """Multiplies windows of bytes by a weight.

    Args:
        weight: Of the layer.
        bytes_, found: Of ``round_bytes``.
        windows: Of each output.
        scaling: What becomes of the sums.

    Returns:
        (A, H, W, out_channels) contiguous; all NaN where ``found`` is.
    """
    rows = _windows(bytes_, windows)
    sums = int_mm(rows.flatten(0, 2), weight.unpacked().flatten(1).t())
    y = (sums + scaling.correction).to(torch.float32) * scaling.scale
    if scaling.bias is not None:
        y = y + scaling.bias
    if scaling.offset is not None:
        inputs = rows.flatten(0, 2).sum(1, dtype=torch.int32) - scaling.zeros
        y = y + inputs.to(torch.float32).unsqueeze(1) * scaling.offset
    y = y + found
    return (y.clamp_min(0) if scaling.relu else y).to(scaling.dtype).view(
        *rows.shape[:3], len(scaling.scale))


def multiply_pairs(a: Tensor, b: Tensor, found: Tensor, zeros: tuple[Tensor, Tensor],
                   scale: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiplies two activations.

    Args:
        a: (A, heads, M, padded) int8 of ``round_bytes``.
        b: (A, heads, N, padded), transposed.
        found: The sum of both.
        zeros: (n,) int32 of each: bytes that stand for zero, n = 1 or one a head.
        scale: (n,) float32: of both together.
        columns: Without padding.
        dtype: Of the output.

    Returns:
        (A, heads, M, N) contiguous: ``scale * sum((a - zero) * (b - zero))``.
    """
    flat = [value.flatten(0, 1) for value in (a, b)]
    sums = torch.stack([int_mm(one, other.t()) for one, other in zip(*flat)]).view(
        *a.shape[:3], b.shape[2])
    zero_a, zero_b = (value.view(-1, 1, 1) for value in zeros)
    sum_a, sum_b = (value.sum(3, dtype=torch.int32) for value in (a, b))
    sums = sums - zero_b * sum_a.unsqueeze(3) - zero_a * sum_b.unsqueeze(2)
    sums = sums + columns * zero_a * zero_b
    return (sums.to(torch.float32) * scale.view(-1, 1, 1) + found).to(dtype)


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) int8 times b (K, N) int8 to (M, N) int32, of any size.

    On CPUs in double precision: ``torch._int_mm`` saturates on some, and this is no path for them.
    """
    if not a.is_cuda:
        return (a.double() @ b.double()).to(torch.int32)
    (rows, inputs), columns = a.shape, b.shape[1]
    a = F.pad(a, (0, -inputs % 8, 0, max(0, ROWS - rows)))
    b = F.pad(b.t(), (0, -inputs % 8, 0, -columns % 8)).t()
    return torch._int_mm(a, b)[:rows, :columns]


def _windows(bytes_: Tensor, windows: Windows) -> Tensor:
    """(A, H, W, taps, padded): the windows of each output, a view."""
    images, height, width, channels = bytes_.shape
    rows, columns = windows.outputs(height, width)
    (down, right), (below, beside) = windows.stride, windows.dilation
    image, row, place = bytes_.stride()[:3]
    spread = bytes_.as_strided(
        (images, rows, columns, *windows.kernel, channels),
        (image, down * row, right * place, below * row, beside * place, 1))
    return spread.flatten(3, 4).flatten(3)


def _aligned(values: Tensor, rounding: Rounding) -> Tensor:
    return values if values.numel() == 1 or rounding.along == 'channel' else \
        values.view(-1, 1, 1)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
