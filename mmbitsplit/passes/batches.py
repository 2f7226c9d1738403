"""What is in a batch, as far as tensors tell."""

from collections.abc import Iterable, Mapping
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


def divided(batch: Any, size: int | None) -> list[Any]:
    """A batch cut into about equal parts; the batch alone where it is no plain stack of samples.

    Args:
        batch: A tensor, or a dict of tensors and lists that all have one length: that of samples.
        size: Most samples of a part; ``None`` leaves it whole.
    """
    held = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if not all(isinstance(one, (Tensor, list) if isinstance(batch, Mapping) else Tensor)
               and (isinstance(one, list) or one.dim()) for one in held):
        return [batch]
    lengths = {len(one) for one in held}
    count = min(lengths, default=0)
    if len(lengths) != 1 or size is None or count <= size:
        return [batch]
    parts = -(-count // size)
    edges = [count * part // parts for part in range(parts + 1)]
    cuts = [slice(*ends) for ends in zip(edges, edges[1:])]
    return [type(batch)({key: one[cut] for key, one in batch.items()})
            if isinstance(batch, Mapping) else batch[cut] for cut in cuts]


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() >= 3 and leaf.shape[-3] in _COLOURS \
        and min(leaf.shape[-2:]) > 1


def _tensors(batch: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
