"""What is in a batch, as far as tensors tell."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_COLOURS = (1, 3)  # channels that images have


def batch_size(batch: Any) -> int:
    """Number of elements of all tensors in a batch, at least 1."""
    return max(1, sum(leaf.numel() for leaf in _tensors(batch)))


def images_in(batch: Any) -> int:
    """Number of samples: of stacked tensors their length, else how many images are side by side."""
    lengths = [len(leaf) for leaf in _tensors(batch) if leaf.dim() in (2, 4, 5)]
    return max([1, *lengths, sum(leaf.dim() == 3 for leaf in _tensors(batch))])


def holds_images(batch: Any) -> bool:
    """Whether a tensor looks like images, (..., 1 or 3, H, W)."""
    return any(map(_is_image, _tensors(batch)))


def mirrored(batch: Any) -> Any:
    """The same batch with images (..., 1 or 3, H, W) seen in a mirror, left and right changed.

    Raises:
        ValueError: There are none.
    """
    if not holds_images(batch):
        raise ValueError(
            'quantization.tuning: mirrored=True needs tensors (..., 1 or 3, H, W) in the batches, '
            'and there are none that look like images. Set mirrored=False.')
    return tree_map(lambda leaf: leaf.flip(-1) if _is_image(leaf) else leaf, batch)


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() >= 3 and leaf.shape[-3] in _COLOURS \
        and min(leaf.shape[-2:]) > 1


def _tensors(batch: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
