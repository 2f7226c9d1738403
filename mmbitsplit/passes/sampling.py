"""Which output positions of a layer call are looked at: a pure function, so passes agree."""

import hashlib
from fractions import Fraction

import torch
from torch import Tensor

EVEN_PART = 0.3  # of the positions that are drawn by importance, those drawn whatever it is


def sample_positions(num_positions: int, num_rows: int, key: tuple) -> Tensor:
    """Draws positions without replacement.

    Args:
        num_positions: Output positions of the call.
        num_rows: Most positions to draw.
        key: Whatever names the draw: (seed, layer, call, batch).

    Returns:
        (min(num_positions, num_rows),) int64, sorted.
    """
    if num_positions <= num_rows:
        return torch.arange(num_positions)
    generator = generator_of(key)
    if num_positions < 4 * num_rows:
        return torch.randperm(num_positions, generator=generator)[:num_rows].sort().values
    # Far fewer rows than positions: draw with replacement, then make good the few repeats.
    drawn = torch.randint(num_positions, (num_rows + num_rows // 2,), generator=generator)
    unique = torch.unique(drawn)
    order = torch.randperm(unique.numel(), generator=generator)
    return unique[order[:num_rows]].sort().values


def draw_by_importance(importance: Tensor, num_rows: int, key: tuple) -> Tensor:
    """Draws positions without replacement, of which more are taken where more depends on them.

    The first is drawn with probability ``(1 - EVEN_PART) importance / sum + EVEN_PART / count``,
    each further one likewise among those that are left.

    Args:
        importance: (count,) of the output positions of a call, not negative.
        num_rows: Most positions to draw.
        key: As for ``sample_positions``, which draws them where all matter alike.

    Returns:
        (min(count, num_rows),) int64, sorted.

    Source: P. Efraimidis and P. Spirakis, *Weighted random sampling with a reservoir*, 2006.
    """
    count = importance.numel()
    if count <= num_rows or bool((importance == importance[0]).all()):
        return sample_positions(count, num_rows, key)
    weights = importance.double().cpu()
    weights = (1 - EVEN_PART) * weights / weights.sum() + EVEN_PART / count
    drawn = torch.rand(count, generator=generator_of((*key, 'importance')), dtype=torch.float64)
    return (drawn.log() / weights).topk(num_rows).indices.sort().values


def draw_with_repeats(num_positions: int, num_rows: int, key: tuple) -> Tensor:
    """Draws positions, some of them perhaps twice: cheaper, and good enough for a range.

    Returns:
        (min(num_positions, num_rows),) int64.
    """
    if num_positions <= num_rows:
        return torch.arange(num_positions)
    return torch.randint(num_positions, (num_rows,), generator=generator_of(key))


def generator_of(key: tuple) -> torch.Generator:
    """Random numbers that a key names."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, 'little'))


def rows_per_call(rows_per_layer: int, num_batches: int, num_calls: int) -> int:
    """Returns how many positions each call contributes; calls count alike.

    A head called on five pyramid levels is fitted to all five, not to the largest alone.
    """
    return max(1, -(-rows_per_layer // (num_batches * num_calls)))


def is_held_out(batch: int, num_batches: int, num_rows: int, holdout: float) -> Tensor:
    """Marks the rows of a call that no solver sees.

    Whole batches are held out where there are enough of them, because rows of one image are
    alike; rows otherwise. Either are taken at even steps: of the first n never more than
    ``holdout * n``, and never one less.

    Returns:
        (num_rows,) bool.
    """
    if holdout == 0:
        return torch.zeros(num_rows, dtype=torch.bool)
    part, of = Fraction(holdout).limit_denominator(10**6).as_integer_ratio()
    if num_batches * part >= of:
        return torch.full((num_rows,), (batch + 1) * part // of > batch * part // of)
    rows = torch.arange(num_rows)
    return (rows + 1) * part // of > rows * part // of


def unseen_batches(num_batches: int, holdout: float) -> list[int]:
    """Batches of which no solver sees a row; none where rows are held out instead of batches."""
    return [batch for batch in range(num_batches)
            if bool(is_held_out(batch, num_batches, 2, holdout).all())]
