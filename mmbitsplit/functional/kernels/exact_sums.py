"""Sums of products without a rounding error: the same in any order, from any number of processes.

Calibration is a chain of discrete choices. Sums that differ in the last bit move one code of a
thousand, that moves the inputs of the next layer, and some layers later another strength of ECAQ
comes out ahead: two processes would give another model than one. Codes of inputs are integers
already; float outputs are rounded to 15 bits and a sign of each channel's largest, whose error is
a thousandth of what quantized inputs add, and then every sum fits its type exactly. So it is on
any processor and on CUDA devices (in float64, which consumer cards compute slowly), for up to 2^19
positions over all processes where inputs are float and for as many as fit into memory where they
are codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmbitsplit.functional.kernels.round_trip import small_integers

# Magnitudes: float64 holds sums of products of 2^19 positions.
OUTPUT_BITS = 14
INPUT_BITS = 17
MOST_POSITIONS = 2 ** 17  # whose products of bytes int32 holds; more are taken in parts
FLOAT_POSITIONS = 2 ** 10  # whose products of bytes float32 holds
LEAST_INPUTS_FOR_INTEGERS = 64
STRIP = 576  # rows of a gram taken at once


@dataclass(frozen=True)
class SumGrid:
    """Steps, powers of two, that positions are rounded to before they are summed.

    Args:
        y: (G, M, 1) of the float outputs.
        x: (1,) of the inputs; ``None`` where they are integers.
    """

    y: Tensor
    x: Tensor | None = None

    @classmethod
    def of(cls, y_largest: Tensor, x_largest: Tensor | None) -> 'SumGrid':
        """From the largest magnitudes (G, M, 1) and (1,) over all positions of all processes."""
        return cls(_step(y_largest, OUTPUT_BITS),
                   None if x_largest is None else _step(x_largest, INPUT_BITS))


def _step(largest: Tensor, bits: int) -> Tensor:
    """Power of two of which ``largest`` is at most 2^bits; 1 for zero."""
    exponent = torch.frexp(largest.double()).exponent
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest, dtype=torch.float64),
                                                exponent - bits), 1.0)


def on_grid(values: Tensor, step: Tensor) -> Tensor:
    """Values rounded to multiples of a step, float64."""
    return (values.double() / step).round_().mul_(step)


def integer_products(x: Tensor) -> bool:
    """Whether products of bytes serve for (G, N, K): they pay and do not overflow."""
    return (x.device.type == 'cpu' and x.shape[0] == 1 and x.shape[1] >= LEAST_INPUTS_FOR_INTEGERS
            and x.shape[2] < MOST_POSITIONS)


@cache
def multiplies_bytes() -> bool:
    """Whether torch's product of bytes is fast here (VNNI), and exact.

    Without VNNI oneDNN adds pairs of products in 16 bits, which saturates. What it really does
    depends on the processor and on ONEDNN_MAX_CPU_ISA, so it is tried.
    """
    vnni = getattr(torch.cpu, '_is_vnni_supported', None)
    if vnni is None or not vnni():
        return False
    largest = torch.full((64, 128), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 127 ** 2 * 128).all())


def byte_products(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``a @ b^T`` (R, S) int32 of int8 (R, K) and (S, K), K below 2^17, exactly."""
    if multiplies_bytes() and a.shape[1] > 1:  # torch 2.13 misreads b^T of a single row
        return torch._int_mm(a, b.t())
    total = torch.zeros(len(a), len(b), dtype=torch.int32)
    part = torch.empty(len(a), len(b), dtype=torch.float32)
    for start in range(0, a.shape[1], FLOAT_POSITIONS):
        block = slice(start, start + FLOAT_POSITIONS)
        # Given ``out`` it is not autocast either.
        torch.mm(a[:, block].float(), b[:, block].float().t(), out=part)
        total += part.int()
    return total


@dataclass(frozen=True)
class Bytes:
    """Integers as bytes: value = code + middle.

    Args:
        codes: (N, K) int8, K below 2^17 so that no sum of products overflows int32.
        sums: (N,) int64 sums of the codes.
        middle: (N,) int64, what was taken off each input.
    """

    codes: Tensor
    sums: Tensor
    middle: Tensor

    @classmethod
    def of(cls, x: Tensor, lowest: int | Tensor) -> 'Bytes':
        """From (1, N, K) integers in [lowest, lowest + 255] on the CPU, (1, N, 1) or one."""
        middle = torch.as_tensor(lowest, dtype=torch.int64).flatten().expand(x.shape[1]) + 128
        return cls(*small_integers(x[0], middle), middle)

    @property
    def value_sums(self) -> Tensor:
        """(1, N) float64 sums of the values."""
        return (self.sums + self.middle * self.codes.shape[1]).double().unsqueeze(0)


def integer_gram(x: Bytes, dtype: torch.dtype) -> Tensor:
    """Returns ``x @ x^T`` (1, N, N), rounded once at the end.

    Args:
        x: N inputs at K positions.
        dtype: Of the result.
    """
    num_inputs, count = x.codes.shape
    # x x^T = codes codes^T + middle (sums of codes)^T + (sums of x) middle^T; int32 may wrap on
    # the way to a sum that fits.
    fits = 255 ** 2 * count < 2 ** 31
    middle, sums, value_sums = (
        values.to(torch.int32 if fits else torch.float64)
        for values in (x.middle, x.sums, x.sums + x.middle * count))
    shifted = bool(x.middle.any())
    gram = torch.empty(num_inputs, num_inputs, dtype=dtype)
    for strip in _strips(num_inputs):  # of a symmetric product half is enough
        start = strip.start
        products = byte_products(x.codes[strip], x.codes[start:]).to(middle.dtype)
        if shifted:
            products.addr_(middle[strip], sums[start:]).addr_(value_sums[strip], middle[start:])
        gram[strip, start:] = products
        gram[strip.stop:, strip] = gram[strip, strip.stop:].t()
    return gram.unsqueeze(0)


def integer_cross(x: Bytes, y: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``y @ x^T`` and the sums of y and of y^2 for outputs rounded to a grid, float64.

    A rounded output is two bytes; with VNNI their products take a quarter of the time of float32.

    Args:
        x: N inputs at K positions.
        y: (1, M, K) float32 or float64 outputs of at most 2^14 steps.
        step: (1, M, 1) float64.

    Returns:
        (1, M, N), (1, M) and (1, M).
    """
    from mmbitsplit.functional.kernels.numba_loops import split_bytes
    parts, sums = split_bytes(y[0].contiguous(), step[0, :, 0])  # (2, M, K) int8, (2, M) int64
    products = byte_products(parts.flatten(0, 1), x.codes)
    low, high = products.view(2, *step.shape[1:2], len(x.codes))  # (M, N) int32
    cross = high.double().mul_(256).add_(low)
    cross.addr_(sums[0].double(), x.middle.double())
    y_sum, y_sq = sums.double() * step[0, :, 0] ** torch.tensor([[1.0], [2.0]]).double()
    return cross.mul_(step[0]).unsqueeze(0), y_sum.unsqueeze(0), y_sq.unsqueeze(0)


def grid_products(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns ``x @ x^T`` and ``y @ x^T``, exact until each is rounded once at the end.

    Works on strips: of many inputs a copy in float64 would be twice as large as they are.

    Args:
        x: (G, N, K) multiples of a step, at most 2^17 of them.
        y: (G, M, K) float64 multiples of steps, at most 2^14 of them.
        dtype: Of the results.
    """
    groups, inputs, _ = x.shape
    gram = y.new_empty(groups, inputs, inputs, dtype=dtype)
    cross = y.new_empty(groups, y.shape[1], inputs, dtype=dtype)
    for strip in _strips(inputs):
        rows = x[:, strip].double()
        cross[..., strip] = y @ rows.mT
        for other in _strips(inputs, strip.start):
            products = rows @ x[:, other].double().mT
            gram[:, strip, other] = products
            gram[:, other, strip] = products.mT
    return gram, cross


def _strips(count: int, first: int = 0) -> Iterator[slice]:
    return (slice(start, min(start + STRIP, count)) for start in range(first, count, STRIP))
