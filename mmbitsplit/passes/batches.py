"""How large a batch is."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def batch_size(batch: Any) -> int:
    """Number of elements of all tensors in a batch, at least 1."""
    return max(1, sum(leaf.numel() for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)))
