import torch

from mmbitsplit.models.layers.product import Product


def test_it_multiplies_as_matmul_does_with_broadcasting():
    a, b = torch.randn(2, 1, 3, 4), torch.randn(5, 4, 6)
    assert torch.equal(Product()(a, b), a @ b)
    assert not list(Product().parameters())
