"""What a tuning stage is given: the whole model, every layer solved, as a point that may move."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TuningProblem(Protocol):
    """The quantized model, what of it may be learned, and its loss against the float model.

    Everything that is learned is one vector, zero where the stage began: logarithms of factors on
    scales, biases in units of the spread of the layer's output, and codes in half code steps. All
    processes of a team see the same numbers.

    Attributes:
        size: Length of the vector.
        fit: Numbers of the batches to learn from.
        held_out: Of those to judge on.
        images: How many images are in a batch.
        mirrored: Whether ``fit`` names each batch twice, once seen in a mirror.
    """

    size: int
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
