"""Codes of one weight in the form that they are multiplied in, one byte a weight or two halves."""

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
        halved: Hold them as ``codes >> 1`` and ``codes & 1``, neither of which saturates.
    """

    def __init__(self, codes: Tensor, pack: Callable[[Tensor, Sequence[int]], Tensor],
                 halved: bool = False):
        self._pack, self._halved = pack, halved
        self._shape: tuple[int, ...] | None = None  # that is packed for
        self._last: tuple[int, ...] | None = None
        self._calls = 0  # in a row with the last shape
        self._few = 0  # calls in a row for rows
        # In the form of oneDNN, one part or two, or whole as rows (O, C).
        self._held: tuple[Tensor, ...] | Tensor = self._plain(codes)
        self._dims = codes.dim()  # 2 of a linear layer: (C, O)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = self._held
        return held.numel() if isinstance(held, Tensor) else sum(
            torch.ops.mkldnn._nbytes(part) for part in held)

    def dense(self) -> Tensor:
        """The codes, a copy."""
        held = self._held
        if isinstance(held, Tensor):
            return held.t().contiguous() if self._dims == 2 else held.clone()[..., None, None]
        parts = [part.to_dense() for part in held]
        return 2 * parts[0] + parts[1] if self._halved else parts[0]

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
        if not isinstance(held, Tensor):
            self._few += 1
            if self._few < PATIENCE:
                return None
            codes = self.dense()
            held = codes.t().contiguous() if self._dims == 2 else codes.flatten(1)
            self._held, self._shape, self._last = held, None, None
        return held.numpy()

    def of(self, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """What an input of this shape is multiplied by: the codes, or twice the first part and the
        second."""
        shape = tuple(shape)
        self._calls = self._calls + 1 if shape == self._last else 1
        self._last = shape
        # Threads that come at once see one or the other: each is right for any shape.
        held = self._held
        if isinstance(held, Tensor) or self._shape not in (None, shape):
            self._shape, held = None, self._plain(self.dense())
            self._held = held
        elif self._shape is None and self._calls >= PATIENCE:
            held = tuple(self._pack(part, shape) for part in self._parts(self.dense()))
            self._held, self._shape = held, shape
        return held

    def _parts(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (codes >> 1, codes & 1) if self._halved else (codes,)

    def _plain(self, codes: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.contiguous().to_mkldnn() for part in self._parts(codes))

    # What oneDNN packed can neither be copied nor pickled.

    def __getstate__(self) -> dict:
        return dict(codes=self.dense(), pack=self._pack, halved=self._halved)

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
