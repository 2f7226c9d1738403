"""The one form that calls which multiply two tensors are brought to."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


class NotOpened(Exception):
    """A call cannot become a module; says why."""


class NoProduct(Exception):
    """A call multiplies nothing with anything but element by element."""


def unchanged(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Multiply:
    """What a call computes: ``finish(a @ b + bias)``.

    Args:
        a: (..., M, K).
        b: (..., K, N).
        bias: (N,), if there is one.
        finish: Makes of the sum what the function returns.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = unchanged
