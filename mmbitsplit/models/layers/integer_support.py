"""Whether torch multiplies bytes on this processor, and whether pairs of products saturate."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS = ('qconv_prepack', 'qconv_pointwise', 'qlinear_prepack', 'qlinear_pointwise')
# Weights of 7 bits, which no order of inputs saturates, and of 8, which worst inputs do.
SAFE, LARGEST = 63, 127
# (in channels, out channels, groups, kernel) of the convolutions that are tried.
SHAPES = ((16, 32, 1, 3), (64, 64, 1, 1), (32, 32, 4, 3), (5, 7, 1, 3))


@cache
def why_no_integers() -> str | None:
    """Why torch has no product of bytes here, ``None`` where it has one that is exact.

    It is tried, whatever the processor says of itself: so ONEDNN_MAX_CPU_ISA counts, too.
    """
    missing = [name for name in OPERATORS if not hasattr(torch.ops.onednn, name)]
    if missing:
        return (f'torch {torch.__version__} has no torch.ops.onednn.{missing[0]} on this '
                'processor; it comes with builds of torch for x86 with oneDNN')
    try:
        exact = all(_exact(SAFE, *shape) for shape in SHAPES) and _exact_linear(SAFE)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return (f'torch {torch.__version__} does not multiply bytes on this processor: '
                f'{str(error).splitlines()[0]}')
    return None if exact else (f'torch {torch.__version__} gives wrong products of bytes on this '
                               'processor')


@cache
def saturates_pairs() -> bool:
    """Whether this processor adds pairs of products in 16 bits: it has no VNNI, or torch is told
    by ONEDNN_MAX_CPU_ISA not to use it."""
    return not (all(_exact(LARGEST, *shape) for shape in SHAPES) and _exact_linear(LARGEST))


@cache
def why_no_products() -> str | None:
    """Why torch has no exact product of two matrices of bytes here, ``None`` where it has.

    Of two inputs nobody knows how far they reach: pairs must not saturate at their ends.
    """
    reason = why_no_integers()
    if reason is not None:
        return reason
    a = torch.full((8, 64), 255, dtype=torch.uint8)
    b = torch.full((64, 32), LARGEST, dtype=torch.int8)
    b[:, ::2] = -LARGEST - 1
    try:
        found = integer_product(a, b, torch.empty(8, 32, dtype=torch.int32))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return (f'torch {torch.__version__} does not multiply matrices of bytes on this processor: '
                f'{str(error).splitlines()[0]}')
    return None if torch.equal(found.double(), a.double() @ b.double()) else (
        f'torch {torch.__version__} gives wrong products of matrices of bytes on this processor')


def integer_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Writes the sums of a product of bytes, whole ones on every processor.

    Where sums of two products saturate, b is multiplied as ``2 (b >> 1)`` and ``b & 1``.

    Args:
        a: uint8 (M, K).
        b: int8 (K, N).
        out: int32 (M, N), contiguous.
    """
    if not saturates_pairs():
        return torch._int_mm(a, b, out=out)
    return torch._int_mm(a, b >> 1, out=out).mul_(2).add_(torch._int_mm(a, b & 1))


def traced() -> bool:
    """Whether operators are being recorded, which would not see a compiled loop."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() \
        or torch.onnx.is_in_onnx_export()


def integer_conv(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor,
                 bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...],
                 dilation: tuple[int, ...], groups: int) -> Tensor:
    """A convolution of bytes: ``scale * sum(x * codes) + bias``, float32.

    oneDNN knows zero points of x, too, but turns the weight anew in each call then.

    Args:
        x: uint8 (B, C, H, W).
        packed: int8 in the form of oneDNN, plain or of ``pack_conv``.
        scale: (out_channels,) float32.
        zeros: (out_channels,) int64 zeros: zero points of the weight.
        bias: (out_channels,) float32.
        stride, padding, dilation: (height, width) each.
        groups: Of channels.

    Returns:
        (B, out_channels, H, W), channels last in memory.
    """
    return torch.ops.onednn.qconv_pointwise(
        x, 1.0, 0, packed, scale, zeros, bias, stride, padding, dilation, groups, 1.0, 0,
        torch.float32, 'none', [], '')


def integer_linear(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor,
                   bias: Tensor | None) -> Tensor:
    """A linear layer of bytes, x (R, C); see ``integer_conv``."""
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, scale, zeros, bias, 1.0, 0, torch.float32, 'none', [], '')


def pack_conv(codes: Tensor, shape: Sequence[int], stride: tuple[int, ...],
              padding: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> Tensor:
    """Codes int8 (O, C / groups, kh, kw) as ``integer_conv`` takes them from an input's shape."""
    return torch.ops.onednn.qconv_prepack(codes, torch.ones(len(codes)), 1.0, 0, stride, padding,
                                          dilation, groups, list(shape))


def pack_linear(codes: Tensor, shape: Sequence[int]) -> Tensor:
    """Codes int8 (C, O) as ``integer_linear`` takes them for inputs of a shape."""
    return torch.ops.onednn.qlinear_prepack(codes.t().contiguous(), list(shape))


def _exact(largest: int, channels: int, outputs: int, groups: int, kernel: int) -> bool:
    """Whether a convolution of the largest bytes comes out whole."""
    x = torch.full((1, channels, 8, 8), 255, dtype=torch.uint8)
    codes = torch.full((outputs, channels // groups, kernel, kernel), largest, dtype=torch.int8)
    codes[::2] *= -1
    scale, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    around = (1, 1), (kernel // 2, kernel // 2), (1, 1), groups
    expected = F.conv2d(x.double(), codes.double(), None, *around)
    return all(torch.equal(integer_conv(x, packed, scale, zeros, None, *around).double(), expected)
               for packed in (codes.to_mkldnn(), pack_conv(codes, x.shape, *around)))


def _exact_linear(largest: int) -> bool:
    """The same of a linear layer."""
    x = torch.full((8, 64), 255, dtype=torch.uint8)
    codes = torch.full((64, 32), largest, dtype=torch.int8)
    scale, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int64)
    return all(torch.equal(integer_linear(x, packed, scale, zeros, None).double(),
                           x.double() @ codes.double())
               for packed in (codes.to_mkldnn(), pack_linear(codes, x.shape)))
