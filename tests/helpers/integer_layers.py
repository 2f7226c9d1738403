"""Layers with random codes, and what they give is compared with."""

import torch

from mmbitsplit.functional import code_range
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.integer_packing import PATIENCE
from mmbitsplit.structures import LayerSolution, QParams

INPUTS = {  # scales, zero points, lowest and highest code, unit
    'relu': ([0.02], [0], 0, 255, True),
    'asymmetric': ([0.03], [93], 0, 255, True),
    'signed': ([0.04], [0], -128, 127, True),
    'narrow': ([0.4], [5], 0, 15, True),
    'real': ([0.03], [17], 0, 255, False),
    'ecaq': ([0.01 * (i + 1) for i in range(8)], [11], 0, 255, True),
    'ecaq, points': ([0.01 * (i + 1) for i in range(8)], [7 * i for i in range(8)], 0, 255, True),
}


def layer_of(geometry, inputs, num_bits=6, offset=False, bias=True, seed=0):
    """A layer with random codes, and an input that leaves the range of its codes at both ends."""
    generator = torch.Generator().manual_seed(seed)
    shape, channels = geometry.weight_shape, geometry.out_channels
    scales, points, low, high, unit = inputs
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    smallest, largest = code_range(num_bits, signed=True)
    codes = torch.randint(smallest, largest + 1, shape, generator=generator, dtype=torch.int8)
    layer = QuantizedLayer(geometry, torch.zeros(shape), torch.zeros(channels))
    layer.install(LayerSolution(
        codes=codes, num_bits=num_bits, weight_scale=draw(channels).abs() + 0.01,
        bias=draw(channels) if bias else None,
        qparams=QParams(torch.tensor(scales), torch.tensor(points), low, high, unit=unit),
        weight_offset=draw(channels) if offset else None))
    layer.release_float()
    size = (2, 5, geometry.in_channels) if geometry.kind == 'linear' else (
        2, geometry.in_channels, 9, 11)
    return layer.eval(), 3 * draw(*size)


def assert_close(y, expected):
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_same(layer, x, expected):
    """Twice more than the calls after which codes are packed: in plain order and packed."""
    with torch.no_grad():
        for _ in range(PATIENCE + 1):
            assert_close(layer(x), expected)
