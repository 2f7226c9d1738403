"""What repeated runs of a shared head answer with, and how they tell true inputs from others."""

from dataclasses import dataclass

import torch
from torch import Tensor

ELEMENTS = 32  # that tell inputs apart, beside their sum


@dataclass
class Care:
    """Whether an owner's steps make numbers of NaN: one for all batches.

    Args:
        careful: A step did.
        first: The batch that tells for the others.
    """

    careful: bool = False
    first: int | None = None

    def wanted(self, batch: int) -> bool:
        """Whether a batch's runs are to be confirmed."""
        if self.first is None:
            self.first = batch
        return self.careful or batch == self.first


class Filler:
    """Writes numbers of all sizes, most of one sign: thresholds and signs are met on both sides.

    Args:
        sign: Of most of them, or 0 for NaN.
    """

    def __init__(self, sign: int):
        self.sign = sign

    def __call__(self, output: Tensor) -> Tensor:
        if not self.sign:
            return output.fill_(float('nan'))
        generator = torch.Generator(output.device).manual_seed(output.numel())
        return output.normal_(self.sign * 20, 30, generator=generator)


@dataclass(frozen=True)
class Digest:
    """What tells one input from another: a sum, and a few elements in their places.

    Args:
        total: Sum of all elements.
        some: Elements, evenly taken.
        count: How many elements there are.
    """

    total: float
    some: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, *inputs: Tensor, total: float | None = None) -> 'Digest':
        """Of one tensor, or of several that are one input."""
        some: list[float] = []
        for x in inputs:
            step = max(1, x.numel() // ELEMENTS) | 1  # odd: not the same place of every row
            some += x.take(torch.arange(0, x.numel(), step, device=x.device)).tolist()
        return cls(sum(float(x.sum()) for x in inputs) if total is None else total,
                   tuple(some), sum(x.numel() for x in inputs))

    def agrees(self, other: 'Digest') -> bool:
        """Whether both are of one input, up to roundings; with NaN in one of them they do not."""
        mean = sum(map(abs, self.some)) / max(1, len(self.some))
        return self.count == other.count and _near(self.total, other.total, mean * self.count) \
            and all(_near(a, b, max(abs(a), mean)) for a, b in zip(self.some, other.some))


def _near(a: float, b: float, size: float) -> bool:
    return a == b or abs(a - b) <= 1e-6 * size


class SpareMemory:
    """Tensors that one run after another writes its passing answers to.

    Fresh memory for each of them would cost more than the answers: the system hands it out page
    by page.
    """

    def __init__(self):
        self.free: dict[tuple, list[Tensor]] = {}
        self.lent: list[Tensor] = []

    def take(self, like: Tensor, shape: torch.Size) -> Tensor:
        """Returns a contiguous tensor of a shape, of the dtype and device of ``like``."""
        free = self.free.get((shape, like.dtype, like.device))
        tensor = free.pop() if free else like.new_empty(shape)
        self.lent.append(tensor)
        return tensor.detach()  # whatever the borrower makes of its handle

    def take_back(self) -> None:
        """A run is over: what was lent may be lent again."""
        for tensor in self.lent:
            self.free.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(tensor)
        self.lent.clear()
