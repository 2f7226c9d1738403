"""Brings an einsum of two tensors to one batched matrix product."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from mmbitsplit.models.opening.multiply import Multiply, NoProduct, NotOpened

_FRESH = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'


def einsum_product(equation: str, a: Tensor, b: Tensor) -> Multiply:
    """Brings ``torch.einsum(equation, a, b)`` to ``finish(a' @ b')``.

    Args:
        equation: With or without ellipses and an arrow.
        a: The first operand.
        b: The second operand.

    Raises:
        NotOpened: A letter stands twice in one operand.
        NoProduct: Nothing is contracted.
    """
    (in_a, in_b), out = _letters(equation, (a.dim(), b.dim()))
    for letters in (in_a, in_b):
        if len(set(letters)) != len(letters):
            raise NotOpened(f"einsum('{equation}') takes a diagonal")
    a, in_a = _summed(a, in_a, {*in_b, *out})
    b, in_b = _summed(b, in_b, {*in_a, *out})
    shared = [letter for letter in in_a if letter in in_b]
    inner = [letter for letter in shared if letter not in out]
    if not inner:
        raise NoProduct
    batch = [letter for letter in out if letter in shared]
    rows = [letter for letter in out if letter in in_a and letter not in in_b]
    columns = [letter for letter in out if letter in in_b and letter not in in_a]
    sizes = _sizes((a, in_a), (b, in_b))

    def shape(letters: Sequence[str]) -> list[int]:
        return [sizes[letter] for letter in letters]

    a = _arranged(a, in_a, [*batch, *rows, *inner], sizes)
    b = _arranged(b, in_b, [*batch, *inner, *columns], sizes)
    # Where nothing is batched, rows keep their dimensions: the first is that of the samples.
    kept = shape(rows) if rows and not batch else [math.prod(shape(rows))]
    a = a.reshape(*shape(batch), *kept, math.prod(shape(inner)))
    b = b.reshape(*shape(batch), math.prod(shape(inner)), math.prod(shape(columns)))
    return Multiply(a, b, None, _finish([*batch, *rows, *columns], out, shape))


def _finish(have: Sequence[str], want: Sequence[str], shape: Callable[[Sequence[str]], list[int]],
            ) -> Callable[[Tensor], Tensor]:
    def finish(output: Tensor) -> Tensor:
        return output.reshape(shape(have)).permute([have.index(letter) for letter in want])
    return finish


def _letters(equation: str, dims: tuple[int, int]) -> tuple[list[list[str]], list[str]]:
    """Letters of both operands and of the result, ellipses spelled out."""
    left, arrow, right = equation.replace(' ', '').partition('->')
    terms = left.split(',')
    free = [letter for letter in _FRESH if letter not in equation]
    most = max([dim - len(term.replace('...', '')) for term, dim in zip(terms, dims)
                if '...' in term], default=0)
    dots = free[:most]
    found = []
    for term, dim in zip(terms, dims):
        before, ellipsis, after = term.partition('...')
        count = dim - len(before) - len(after)
        found.append([*before, *(dots[len(dots) - count:] if ellipsis else ()), *after])
    if arrow:
        before, ellipsis, after = right.partition('...')
        return found, [*before, *(dots if ellipsis else ()), *after]
    everything = ''.join(term.replace('...', '') for term in terms)
    once = sorted(letter for letter in set(everything) if everything.count(letter) == 1)
    return found, [*dots, *once]


def _summed(tensor: Tensor, letters: list[str], wanted: set[str]) -> tuple[Tensor, list[str]]:
    """Adds up what neither the other operand nor the result has."""
    alone = [index for index, letter in enumerate(letters) if letter not in wanted]
    if alone:
        tensor = tensor.sum(alone)
    return tensor, [letter for letter in letters if letter in wanted]


def _sizes(*operands: tuple[Tensor, list[str]]) -> dict[str, int]:
    """Size of each letter; one of 1 is repeated where the other operand has more."""
    found: dict[str, int] = {}
    for tensor, letters in operands:
        for letter, size in zip(letters, tensor.shape):
            found[letter] = size if found.get(letter, 1) == 1 else found[letter]
    return found


def _arranged(tensor: Tensor, letters: list[str], order: list[str], sizes: dict[str, int],
              ) -> Tensor:
    if list(letters) != order:
        tensor = tensor.permute([letters.index(letter) for letter in order])
    shape = [sizes[letter] for letter in order]
    return tensor if list(tensor.shape) == shape else tensor.expand(shape)


def bound_einsum(*args: object) -> Multiply:
    """``einsum_product`` of what ``torch.einsum`` was called with."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or not all(isinstance(one, Tensor) for one in operands):
        raise NotOpened('einsum with lists of numbers in place of letters')
    if len(operands) != 2:
        if len(operands) == 1:
            raise NoProduct
        raise NotOpened(f"einsum('{equation}') of {len(operands)} tensors")
    return einsum_product(equation, *operands)
