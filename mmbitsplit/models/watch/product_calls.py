"""What watched calls of products showed: shapes, multiplications, which inputs softmaxes made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-2  # of what a softmax gives, under autocast too


@dataclass
class ProductCalls:
    """What the calls of one product, ``a @ b``, showed in a run.

    Args:
        shapes: Of both inputs, a pair a call.
        multiplications: Of each call.
        softmax: Inputs (``'a'``, ``'b'``) that in every call were the output of a softmax over the
            dimension that is summed over.
    """

    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    multiplications: list[int] = field(default_factory=list)
    softmax: set[str] = field(default_factory=lambda: {'a', 'b'})

    def add(self, a: Tensor, b: Tensor, output: Tensor) -> None:
        """A call of the product is over."""
        self.shapes.append((tuple(a.shape), tuple(b.shape)))
        self.multiplications.append(output.numel() * a.shape[-1])
        self.softmax -= {side for side, x, dim in (('a', a, -1), ('b', b, -2))
                         if side in self.softmax and not _sums_to_one(x, dim)}

    def merged(self, other: 'ProductCalls') -> 'ProductCalls':
        """What two runs showed together; shapes of both, the most multiplications of one."""
        return ProductCalls(
            list(dict.fromkeys((*self.shapes, *other.shapes))),
            max(self.multiplications, other.multiplications, key=sum),
            self.softmax & other.softmax)

    def heads(self, side: str) -> int | None:
        """Size of the dimension before the last two where an input has four, the same in all calls.

        Of three dimensions the first holds images, too: ``None``.
        """
        sizes = {shape[-3] if len(shape) > 3 else None
                 for shape in ((pair[side == 'b']) for pair in self.shapes)}
        return sizes.pop() if len(sizes) == 1 else None


def product_inputs(args: tuple, kwargs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the inputs of a product's call, given by position or by name."""
    given = dict(zip(('a', 'b'), args), **kwargs)
    return given['a'], given['b']


def _sums_to_one(x: Tensor, dim: int) -> bool:
    """Whether an input is what a softmax over a dimension gives, or zero where all is masked."""
    if not x.numel() or not x.is_floating_point() or bool((x < 0).any()):
        return False
    sums = x.sum(dim, dtype=torch.float32)
    return bool(((sums - 1).abs() <= SUM_TOLERANCE).logical_or(sums == 0).all())
