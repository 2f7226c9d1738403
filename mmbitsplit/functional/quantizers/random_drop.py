"""Quantization that is left out at random, element by element.

Source: Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization, ICLR 2022, Eq. 8 and 9.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class RandomDrop:
    """Masks one after another, drawn from a seed: the same again for the same seed and calls.

    Args:
        probability: That an element is left unquantized, 0 to 1.
        generator: Gives the seed; masks are drawn where the data is.
    """

    def __init__(self, probability: float, generator: torch.Generator):
        if not 0 <= probability <= 1:
            raise ValueError(f'probability={probability!r} is not supported; it must be from 0 '
                             '(all quantized) to 1 (nothing).')
        self.probability = probability
        self._seed = int(torch.randint(1 << 62, (), generator=generator,
                                       device=generator.device))
        self._generator: torch.Generator | None = None

    def __call__(self, quantized: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """Some elements of ``quantized``, the others as they are without.

        Args:
            quantized: Any shape.
            plain: Makes what stands in for it.
        """
        if self.probability == 0:  # to the last bit, and at no cost
            return quantized
        if self.probability == 1:
            return plain()
        if self._generator is None:
            self._generator = torch.Generator(quantized.device).manual_seed(self._seed)
        kept = torch.rand(quantized.shape, generator=self._generator, device=quantized.device,
                          dtype=torch.float32) >= self.probability
        return torch.where(kept, quantized, plain())
