"""A product of two activations as a module, so that it can be seen, planned and quantized."""

import torch
from torch import Tensor, nn


class Product(nn.Module):
    """Multiplies two activations, as ``torch.matmul`` does; it holds no weight.

    ``models.opening`` puts one into a module for each product that the module's forward computes
    (``q @ k^T``, ``a @ v``), and brings every way in which it is written to this form.

    Args:
        softmax: ``'a'`` or ``'b'`` where that side comes out of a softmax, as far as was seen.
    """

    def __init__(self, softmax: str | None = None):
        super().__init__()
        self.softmax = softmax

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Args: a (..., M, K), b (..., K, N), both at least 2-D. Returns: (..., M, N)."""
        return torch.matmul(a, b)

    def extra_repr(self) -> str:
        return '' if self.softmax is None else f'softmax={self.softmax!r}'
