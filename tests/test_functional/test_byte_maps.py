"""Maps are rounded and turned to the bytes that the one pass over memory gives."""

import pytest
import torch

from mmbitsplit.functional.kernels import byte_maps as kernels
from mmbitsplit.functional.kernels.byte_codes import byte_codes

SIZES = [(2, 3, 1, 1), (1, 5, 9, 70), (2, 8, 16, 16), (1, 20, 33, 16), (3, 64, 1, 7)]


def rounding(count):
    scales = 0.02 * torch.arange(1, count + 1)
    points = torch.arange(count, dtype=torch.int32) * 3
    return scales, 0.0 - points, 255.0 - points, points


@pytest.mark.parametrize('parallel', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_bytes_and_back(size, parallel, monkeypatch):
    if parallel:
        monkeypatch.setattr(kernels, 'run_loop', lambda serial, loop, work, *args: loop(*args))
    x = 3 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    for count in (1, size[1]):
        found = kernels.byte_maps(x, *rounding(count))
        expected = byte_codes(x.contiguous(memory_format=torch.channels_last), *rounding(count))
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
    turned = kernels.channels_first(x.contiguous(memory_format=torch.channels_last))
    assert turned.is_contiguous() and torch.equal(turned, x)
    x[-1, -1, -1, -1] = float('nan')
    assert kernels.byte_maps(x, *rounding(1)) is None
