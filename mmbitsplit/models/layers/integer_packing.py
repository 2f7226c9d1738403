"""Codes of one weight in the form that they are multiplied in, one byte a weight, kept once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Calls in a row with one shape before codes are packed for it.
PATIENCE = 3


class PackedCodes:
    """A weight that is packed for the shape of its inputs, as long as that stays.

    oneDNN takes a weight in another order for another shape, and turns one that was packed for a
    shape of before very slowly, up to fifty times the product itself. From the plain order it is
    quick. So codes are packed once some calls in a row had one shape, and plain while shapes
    change, as in a head that is called on each level of a pyramid. Likewise they are rows once some
    calls in a row had few inputs.

    Args:
        codes: int8, in the order of dimensions that oneDNN names.
        pack: Packs them for the shape of an input.
    """

    def __init__(self, codes: Tensor, pack: Callable[[Tensor, Sequence[int]], Tensor]):
        self._pack = pack
        self._shape: tuple[int, ...] | None = None  # that is packed for
        self._last: tuple[int, ...] | None = None
        self._calls = 0  # in a row with the last shape
        self._few = 0  # calls in a row for rows
        # In the form of oneDNN, or as rows (O, C).
        self._held = codes.contiguous().to_mkldnn()
        self._dims = codes.dim()  # 2 of a linear layer: (C, O)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = self._held
        return torch.ops.mkldnn._nbytes(held) if held.is_mkldnn else held.numel()

    def dense(self) -> Tensor:
        """The codes, a copy."""
        held = self._held
        if held.is_mkldnn:
            return held.to_dense()
        return held.t().contiguous() if self._dims == 2 else held.clone()[..., None, None]

    def rows(self, few: bool) -> np.ndarray | None:
        """The codes (O, C) of a layer whose kernel is one element, for a product of few inputs.

        Args:
            few: Whether inputs are few.

        Returns:
            ``None`` where they are not, and until some calls in a row had few.
        """
        held = self._held
        if not few:
            self._few = 0
            return None
        if held.is_mkldnn:
            self._few += 1
            if self._few < PATIENCE:
                return None
            codes = held.to_dense()
            held = codes.t().contiguous() if self._dims == 2 else codes.flatten(1)
            self._held, self._shape, self._last = held, None, None
        return held.numpy()

    def of(self, shape: Sequence[int]) -> Tensor:
        """What an input of this shape is multiplied by."""
        shape = tuple(shape)
        self._calls = self._calls + 1 if shape == self._last else 1
        self._last = shape
        # Threads that come at once see one or the other: each is right for any shape.
        held = self._held
        if not held.is_mkldnn or self._shape not in (None, shape):
            self._shape, held = None, self.dense().to_mkldnn()
            self._held = held
        elif self._shape is None and self._calls >= PATIENCE:
            held = self._pack(self.dense(), shape)
            self._held, self._shape = held, shape
        return held

    # What oneDNN packed can neither be copied nor pickled.

    def __getstate__(self) -> dict:
        return dict(codes=self.dense(), pack=self._pack)

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
