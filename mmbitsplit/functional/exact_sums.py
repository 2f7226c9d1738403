"""Sums of products without a rounding error: the same in any order, from any number of processes.

Calibration is a chain of discrete choices. Sums that differ in the last bit move one code of a
thousand, that moves the inputs of the next layer, and some layers later another strength of ECAQ
comes out ahead: two processes would give another model than one. Codes of inputs are integers
already; float outputs are rounded to 15 bits and a sign of each channel's largest, whose error is
a thousandth of what quantized inputs add, and then every sum fits its type exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.functional.round_trip import small_integers

# Magnitudes; float64 holds sums of products of 2^17 positions, int32 those of bytes.
OUTPUT_BITS = 14
INPUT_BITS = 17
MOST_POSITIONS = 2 ** 17
LEAST_INPUTS_FOR_INTEGERS = 64
STRIP = 576  # rows of an integer gram taken at once


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
    """Whether products of bytes serve for (G, N, K): fast on this machine, and no overflow."""
    vnni = getattr(torch.cpu, '_is_vnni_supported', None)
    return (x.device.type == 'cpu' and x.shape[0] == 1 and x.shape[1] >= LEAST_INPUTS_FOR_INTEGERS
            and x.shape[2] < MOST_POSITIONS and vnni is not None and vnni())


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
    for start in range(0, num_inputs, STRIP):  # of a symmetric product half is enough
        strip = slice(start, min(start + STRIP, num_inputs))
        products = torch._int_mm(x.codes[strip], x.codes[start:].t()).to(middle.dtype)
        if shifted:
            products.addr_(middle[strip], sums[start:]).addr_(value_sums[strip], middle[start:])
        gram[strip, start:] = products
        gram[strip.stop:, strip] = gram[strip, strip.stop:].t()
    return gram.unsqueeze(0)


def integer_cross(x: Bytes, y: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``y @ x^T`` and the sums of y and of y^2 for outputs rounded to a grid, float64.

    A rounded output is two bytes; products of bytes take a quarter of the time of float32.

    Args:
        x: N inputs at K positions.
        y: (1, M, K) float32 or float64 outputs of at most 2^14 steps.
        step: (1, M, 1) float64.

    Returns:
        (1, M, N), (1, M) and (1, M).
    """
    from mmbitsplit.functional.compiled import split_bytes
    parts, sums = split_bytes(y[0].contiguous(), step[0, :, 0])  # (2, M, K) int8, (2, M) int64
    products = torch._int_mm(parts.flatten(0, 1), x.codes.t())
    low, high = products.view(2, *step.shape[1:2], len(x.codes))  # (M, N) int32
    cross = high.double().mul_(256).add_(low)
    cross.addr_(sums[0].double(), x.middle.double())
    y_sum, y_sq = sums.double() * step[0, :, 0] ** torch.tensor([[1.0], [2.0]]).double()
    return cross.mul_(step[0]).unsqueeze(0), y_sum.unsqueeze(0), y_sq.unsqueeze(0)
