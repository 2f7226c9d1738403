"""Which rows of a layer's input are tokens and which only fill a sentence up.

A tokenizer fills the sentences of a batch up to the longest and says in a mask which tokens are
real. Nobody reads what the model makes of the others, so no layer is fitted to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def row_masks(batches: Mapping[int, Any], name: str | None) -> dict[int, Tensor]:
    """Finds the masks of batches that have one.

    Args:
        batches: By number.
        name: Of the entry that is the mask, in batches that are mappings of arguments; ``None``
            looks for none.

    Returns:
        (sentences, tokens) bool on the CPU by number of the batch: ``True`` for real tokens. None
        of batches without such an entry, or whose entry has other than two dimensions.
    """
    found = {}
    for number, batch in batches.items():
        mask = batch[name] if isinstance(batch, Mapping) and name in batch else None
        if isinstance(mask, Tensor) and mask.dim() == 2:
            found[number] = (mask != 0).cpu()
    return found


def real_rows(mask: Tensor | None, sizes: Sequence[int]) -> Tensor | None:
    """Flat indices of the rows that are real tokens.

    Args:
        mask: (sentences, tokens) bool, or ``None``.
        sizes: That number the rows: (sentences, tokens), with more between them (heads), or both
            in one.

    Returns:
        (K,) int64, sorted; ``None`` where all rows count: there is no mask, it leaves none out, or
        the rows are no tokens of it.
    """
    if mask is None or bool(mask.all()) or not bool(mask.any()):
        return None
    sizes = tuple(sizes)
    if sizes == (mask.numel(),):
        kept = mask.flatten()
    elif len(sizes) >= 2 and (sizes[0], sizes[-1]) == tuple(mask.shape):
        kept = mask.view(sizes[0], *(1 for _ in sizes[1:-1]), sizes[-1]).expand(sizes).flatten()
    else:
        return None
    return torch.nonzero(kept).flatten()
