"""The weight that codes stand for: the compiled pass against torch's, bit for bit."""

import pytest
import torch
from torch import nn

from mmbitsplit.functional import code_range, narrower_codes, per_output
from mmbitsplit.functional.quantizers.weight_codes import write_weight
from mmbitsplit.models import layer_geometry

MODULES = {
    'conv': nn.Conv2d(5, 7, 3), 'grouped': nn.Conv2d(6, 4, (1, 3), groups=2),
    'depthwise': nn.Conv2d(6, 6, 3, groups=6), 'linear': nn.Linear(9, 5),
    'transposed': nn.ConvTranspose2d(6, 4, 3, groups=2), 'large': nn.Conv2d(128, 96, 5)}


@pytest.mark.parametrize('offset', [False, True])
@pytest.mark.parametrize('nesting', ['planes', 'floor'])
@pytest.mark.parametrize('name', list(MODULES))
def test_one_pass_gives_what_four_give(name, nesting, offset):
    geometry = layer_geometry(MODULES[name])
    generator = torch.Generator().manual_seed(0)
    low, high = code_range(8, signed=True, narrow_range=nesting == 'planes')
    codes = torch.randint(low, high + 1, geometry.weight_shape, dtype=torch.int8,
                          generator=generator)
    scale = torch.rand(geometry.out_channels, generator=generator) + 0.1
    less = torch.randn(geometry.out_channels, generator=generator) if offset else None
    for num_bits in (8, 6, 3, 2):
        expected = narrower_codes(codes, 8, num_bits, nesting)
        real = expected.float().mul_(per_output(scale, geometry))
        if offset:
            real += per_output(less, geometry)
        for layout in (torch.contiguous_format, torch.channels_last)[:codes.dim() - 2 or 1]:
            whole = codes.to(memory_format=layout) if codes.dim() == 4 else codes
            made = torch.full_like(whole, 99)
            weight = torch.full_like(whole, torch.nan, dtype=torch.float32)
            version = weight._version
            if num_bits < 8:
                write_weight(weight, made, scale, less, geometry, (whole, 8 - num_bits, nesting))
                assert torch.equal(made, expected)
            else:
                write_weight(weight, whole, scale, less, geometry)
            assert torch.equal(weight, real) and weight._version > version
