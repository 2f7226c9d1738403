"""How far the outputs of an exported graph are from the model's own.

Unit: the step that an 8-bit quantizer over the output's range would have. Differences come from
the order in which products are summed, from scales folded into the layer before, and from divisions
that runtimes replace by multiplications: each moves a value that lies between two codes to the
other one at times, and the layers behind spread that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 255


@dataclass(frozen=True)
class Agreement:
    """Outputs compared, perhaps over many calls; two of them add up.

    Args:
        elements: Number of elements compared.
        within: Those that differ by one step at most.
        largest: Largest difference, in steps.
    """

    elements: int = 0
    within: int = 0
    largest: float = 0.0

    def __add__(self, other: 'Agreement') -> 'Agreement':
        return Agreement(self.elements + other.elements, self.within + other.within,
                         max(self.largest, other.largest))

    @property
    def share(self) -> float:
        """Part of the elements that differ by one step at most; 1 without elements."""
        return self.within / self.elements if self.elements else 1.0


def compare_outputs(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Agreement:
    """Compares the outputs of one call, each in steps of its own expected range.

    Args:
        expected, actual: Tensors of the same shapes.

    Raises:
        ValueError: Their number or a shape differs.
    """
    shapes = [[tuple(value.shape) for value in values] for values in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'The outputs have shapes {shapes[1]}, expected are {shapes[0]}; '
                         'the graph belongs to another model.')
    total = Agreement()
    for want, have in zip(expected, actual):
        if not want.numel():
            continue
        step = (want.max() - want.min()).double() / STEPS
        difference = (want.double() - have.double()).abs()
        # A constant output has no range; then only equal values agree.
        steps = torch.where(difference > 0, difference / step, 0.0)
        total += Agreement(want.numel(), int((steps <= 1).sum()), float(steps.max()))
    return total
