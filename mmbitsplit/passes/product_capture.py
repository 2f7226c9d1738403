"""Takes from one call of a product what the search for its scales needs: a few of its matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.functional import ActivationSamples
from mmbitsplit.passes.sampling import draw_with_repeats, sample_positions
from mmbitsplit.passes.team import Team
from mmbitsplit.structures import ProductInput, ProductPlan

# Of all calls of a product together: elements of sampled matrices, and values of each input.
ELEMENTS_PER_PRODUCT, VALUES_PER_INPUT = 1 << 20, 1 << 16
MOST_ROWS, LEAST_ROWS = 128, 8  # of a matrix, and as many columns; what is summed over stays whole
LEAST_VALUES = 256  # of an input, or of each head, in one call


@dataclass(frozen=True, kw_only=True)
class ProductCapture:
    """What was taken from one call of ``a @ b``.

    Args:
        a: (n, R, K) rows of sampled matrices.
        b: (n, K, C) columns of the matrices that they meet.
        heads: (n,) place of each matrix in the dimension before the last two.
        values: By input, (1, S) or (heads, S) of its elements.
        low, high: By input, (1,) or (heads,) range of all of it.
        batch: Number of the batch, over all processes.
    """

    a: Tensor
    b: Tensor
    heads: Tensor
    values: dict[str, Tensor]
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    batch: int

    @property
    def matrices(self) -> dict[str, Tensor]:
        """Those of ``'a'`` and ``'b'``."""
        return {'a': self.a, 'b': self.b}


def capture_product(a: Tensor, b: Tensor, plan: ProductPlan, share: float, key: tuple,
                    mask: Tensor | None = None) -> ProductCapture:
    """Takes samples of a call.

    Args:
        a: (..., M, K) float32.
        b: (..., K, N) float32.
        plan: Of the product: says which input has a scale a head.
        share: Part of all samples that this call contributes, 0 to 1.
        key: Whatever names the call: (seed, product, call, batch). The same key draws the same.
        mask: (sentences, tokens) bool of the batch: tokens that are looked at, where there are
            others that only fill sentences up; ``None`` for all.
    """
    batch_shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (rows, inner), columns, elements = a.shape[-2:], b.shape[-1], ELEMENTS_PER_PRODUCT * share
    most = max(LEAST_ROWS, min(MOST_ROWS, int(elements / (2 * max(1, inner)))))
    size = max(1, inner * (min(rows, most) + min(columns, most)))
    places = sample_positions(math.prod(batch_shape), max(1, int(elements / size)),
                              (*key, 'matrices'))
    where = torch.unravel_index(places.to(a.device), batch_shape) if batch_shape else ()
    sentences = where[0].cpu() if where else None
    chosen_rows, chosen_columns = (
        _drawn(count, most, _real_in(mask, sentences, batch_shape, count), (*key, what)).to(
            a.device) for count, what in ((rows, 'rows'), (columns, 'columns')))
    found = {side: _ends(x, getattr(plan, side), share, (*key, side), mask)
             for side, x in (('a', a), ('b', b))}
    return ProductCapture(
        a=_matrices(a, batch_shape, where).index_select(1, chosen_rows),
        b=_matrices(b, batch_shape, where).index_select(2, chosen_columns),
        heads=where[-1] if where else places.new_zeros(1, device=a.device),
        values={side: one[0] for side, one in found.items()},
        low={side: one[1] for side, one in found.items()},
        high={side: one[2] for side, one in found.items()}, batch=key[-1])


def capture_bytes(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], calls: float) -> int:
    """Most bytes that the captures of a product take.

    Args:
        shapes: Of its inputs, by call.
        calls: Of all batches of this process.
    """
    inner = max((a[-1] for a, _ in shapes), default=0)
    least = calls * 2 * LEAST_ROWS * inner
    return int(4 * (max(ELEMENTS_PER_PRODUCT, least)
                    + 2 * max(VALUES_PER_INPUT, calls * LEAST_VALUES)))


def merged_values(captures: Sequence[ProductCapture], side: str, team: Team) -> ActivationSamples:
    """Joins values and ranges of an input over all calls, those of other processes too."""
    mine = [(one.batch, one.values[side], one.low[side], one.high[side]) for one in captures]
    calls = [call for part in team.gather(mine) for call in part]
    calls.sort(key=lambda call: call[0])  # the order of one process alone; calls stay in theirs
    return ActivationSamples(torch.cat([values for _, values, _, _ in calls], 1),
                             torch.stack([low for _, _, low, _ in calls]).amin(0),
                             torch.stack([high for _, _, _, high in calls]).amax(0))


def _matrices(x: Tensor, batch_shape: Sequence[int], where: tuple[Tensor, ...]) -> Tensor:
    """(n, ., .) matrices at places of the broadcast dimensions before the last two."""
    whole = x.expand(*batch_shape, *x.shape[-2:])
    return whole[where] if where else whole.unsqueeze(0)


def _drawn(count: int, most: int, real: Tensor | None, key: tuple) -> Tensor:
    """Places of rows or columns, (K,): of the real ones where some are not."""
    return sample_positions(count, most, key) if real is None \
        else real[sample_positions(real.numel(), most, key)]


def _real_in(mask: Tensor | None, sentences: Tensor | None, batch_shape: Sequence[int], count: int,
             ) -> Tensor | None:
    """Tokens that are real in all of some sentences; ``None`` where these are no tokens of them."""
    if mask is None or sentences is None or (batch_shape[0], count) != tuple(mask.shape):
        return None
    real = torch.nonzero(mask[sentences].all(0)).flatten()
    return real if 0 < real.numel() < count else None


def _real_part(x: Tensor, side: str, mask: Tensor | None) -> Tensor:
    """An input (S, H, ., .) without what it holds of tokens that are not real: (1, H, ., .)."""
    if mask is None or x.dim() != 4 or x.shape[0] != mask.shape[0] or bool(mask.all()):
        return x
    tokens = [dim for dim in ((-2, -1) if side == 'a' else (-1, -2))
              if x.shape[dim] == mask.shape[1]][:1]
    if not tokens:
        return x
    by_token = x.movedim(tokens[0], 1)  # (S, T, H, .)
    return by_token[mask.to(x.device)].movedim(1, 0).unsqueeze(0)


def _ends(x: Tensor, plan: ProductInput, share: float, key: tuple, mask: Tensor | None,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """Values (C, S), least and greatest (C,) of an input; C is 1, or the number of heads."""
    x = _real_part(x, key[-1], mask)
    channels = x.movedim(-3, 0) if plan.granularity == 'head' else x.unsqueeze(0)
    if not x.numel():
        empty = x.new_zeros(channels.shape[0])
        return x.new_zeros(channels.shape[0], 0), empty, empty
    count = math.prod(channels.shape[1:])
    wanted = max(LEAST_VALUES, int(VALUES_PER_INPUT * share / channels.shape[0]))
    chosen = draw_with_repeats(count, wanted, (*key, 'values')).to(x.device)
    values = channels[(slice(None), *torch.unravel_index(chosen, channels.shape[1:]))]
    dims = tuple(range(1, channels.dim()))
    return values.contiguous(), channels.amin(dims), channels.amax(dims)
