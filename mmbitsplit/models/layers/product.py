"""A product of two activations as a module, so that it can be seen, planned and quantized."""

import torch
from torch import Tensor, nn


class Product(nn.Module):
    """Multiplies two activations, as ``torch.matmul`` does; it holds no weight.

    ``models.opening`` puts one into a module for each product that the module's forward computes
    (``q @ k^T``, ``a @ v``), and brings every way in which it is written to this form.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Args: a (..., M, K), b (..., K, N), both at least 2-D. Returns: (..., M, N)."""
        return torch.matmul(a, b)
