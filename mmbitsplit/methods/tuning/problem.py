"""What a tuning stage is given: the whole model, every layer solved, and what of it may move."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmbitsplit.structures import FoldedNorm


class TuningProblem(Protocol):
    """The quantized model, what of it may be learned, and its loss against the float model.

    Everything that is learned is one vector, zero where the stage began: logarithms of factors on
    scales, biases in units of the spread of the layer's output (or of the output itself, where the
    stage says so), and codes in half code steps. All processes of a team see the same numbers.

    Attributes:
        size: Length of the vector.
        fit: Numbers of the batches to learn from.
        held_out: Of those to judge on.
        images: How many images are in a batch.
        mirrored: Whether ``fit`` names each batch twice, once seen in a mirror.
        classes: Numbers of a row that the loss sums over: 1 but for class scores.
    """

    size: int
    classes: int
    fit: Sequence[int]
    held_out: Sequence[int]
    images: int
    mirrored: bool

    def move_to(self, point: Tensor) -> None:
        """Writes a point (size,) into the model; at zero it is bit for bit as it was."""

    def loss(self, batches: Sequence[int]) -> float:
        """Mean loss of the model as it stands on batches of all processes."""

    def gradient(self, batches: Sequence[int]) -> tuple[float, Tensor]:
        """The same loss, and its gradient (size,), float64."""

    def generator(self, step: int) -> torch.Generator:
        """Random numbers of a step, the same whenever it is taken."""

    def progress(self, step: int, steps: int) -> None:
        """Tells whoever shows it."""


class NormProblem(Protocol):
    """The quantized model, and what outputs of its layers are to have on average.

    All processes of a team see the same numbers.

    Attributes:
        fit: Numbers of the batches that are not judged on.
        held_out: Of those to judge on.
        norms: By layer, in the order of the model.
    """

    fit: Sequence[int]
    held_out: Sequence[int]
    norms: Mapping[str, FoldedNorm]

    def loss(self, batches: Sequence[int]) -> float:
        """Mean loss of the model as it stands on batches of all processes."""

    def in_order(self, batches: Sequence[int], settle: Callable[[str, Tensor], None]) -> None:
        """Runs the model; each layer is settled before any batch goes on behind it.

        Args:
            batches: Numbers of batches.
            settle: Given the layer's name and sums (3, out_channels) of its outputs on all of
                them: their number, the outputs, their squares. May change the layer.
        """

    def by_batch(self, batches: Sequence[int]) -> dict[str, list[Tensor]]:
        """Runs the model on one batch after another, norms behind the layers in training mode.

        Returns:
            By layer, sums (3, out_channels) of each call of each batch, in order.
        """

    def scale_and_shift(self, name: str, factor: Tensor, shift: Tensor) -> None:
        """Makes a layer give ``factor * y + shift``, (out_channels,) each; its codes stay."""

    def take_back(self) -> None:
        """All layers are bit for bit as they were in the beginning."""

    def progress(self, step: int, steps: int) -> None:
        """Tells whoever shows it."""
