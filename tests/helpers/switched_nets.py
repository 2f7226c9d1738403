"""Nets whose layers have several widths, made by hand: nothing is calibrated."""

from dataclasses import replace

import torch
from torch import nn

from mmbitsplit.functional import (
    midrise_codes,
    midrise_offset,
    narrower_codes,
    narrower_qparams,
)
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.streams import round_stream
from mmbitsplit.structures import LayerSolution, ProductSolution, QParams

WIDTHS = (2, 3, 4, 6, 8)


def qparams_of(num_bits, scale=0.02, size=1, unit=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = scale * (1 + torch.rand(size, generator=generator))
    zero = torch.full((size,), 100)
    base = QParams(scales, zero, 0, 255, unit=unit)
    return base if num_bits == 8 else narrower_qparams(base, 0.9 * 2 ** (8 - num_bits), num_bits)


def solution_of(geometry, nesting, seed=0, unit=True, size=1):
    """All widths of a layer; a narrower one has its own scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(geometry.weight_shape, generator=generator)
    one = torch.ones(geometry.out_channels)
    codes, parts = midrise_codes(weight, torch.tensor(0.03), 8), {}
    if nesting != 'floor':
        codes = codes.clamp(min=-127)
    for num_bits in WIDTHS:
        scale = 0.03 * 2.0 ** (8 - num_bits) * one * (1 + num_bits / 50)
        parts[num_bits] = LayerSolution(
            codes=narrower_codes(codes, 8, num_bits, nesting), num_bits=num_bits,
            weight_scale=scale, bias=num_bits * one, qparams=None,
            weight_offset=midrise_offset(scale) if nesting == 'floor' else None, nesting=nesting)
    return replace(
        parts[8], narrower=tuple(parts[width] for width in (6, 4, 3, 2)),
        qparams=qparams_of(8, size=size, unit=unit),
        narrower_inputs=tuple(qparams_of(width, size=size, unit=unit) for width in (6, 4, 3, 2)),
        output_qparams=qparams_of(8, 0.1, unit=False),
        narrower_outputs=(qparams_of(4, 0.1, unit=False),))


def at(solution, weight, inputs, output):
    """The solution of one width alone, as a layer that was solved for it would have it."""
    one = next(each for each in (solution, *solution.narrower) if each.num_bits == weight)
    sides = [next(each for each in found if each.num_bits == width) for found, width in (
        ((solution.qparams, *solution.narrower_inputs), inputs),
        ((solution.output_qparams, *solution.narrower_outputs), output))]
    factor = 1.0
    if solution.qparams.unit:
        factor = float(sides[0].scale[0].double() / solution.qparams.scale[0].double())
    offset = one.weight_offset
    return LayerSolution(
        codes=one.codes, num_bits=weight, weight_scale=one.weight_scale * factor, bias=one.bias,
        qparams=sides[0], output_qparams=sides[1], nesting=solution.nesting,
        weight_offset=None if offset is None else offset * factor)


def layer_with(module, solution=None):
    geometry = layer_geometry(module)
    layer = QuantizedLayer(geometry, module.weight, module.bias)
    if solution is not None:
        layer.install(solution)
    return layer.eval()


class Net(nn.Module):
    """Two layers with several widths, one of one width, a product and a stream."""

    def __init__(self, nesting='floor'):
        super().__init__()
        torch.manual_seed(0)
        conv, second, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.conv = layer_with(conv, solution_of(layer_geometry(conv), nesting, 1))
        self.act = nn.ReLU()
        self.second = layer_with(second, solution_of(layer_geometry(second), nesting, 2, size=4))
        self.product = Product()
        wide, narrow = qparams_of(8, 0.05), qparams_of(4, 0.05)
        self.product.install(ProductSolution(wide, wide, narrower_a=(narrow,),
                                             narrower_b=(narrow,)))
        self.last = layer_with(last, replace(
            at(solution_of(layer_geometry(last), nesting, 3), 8, 8, 8),
            qparams=qparams_of(8, 8.0), output_qparams=qparams_of(8, 0.5, unit=False)))
        round_stream(self.act, qparams_of(8, 0.04, unit=False),
                     (qparams_of(4, 0.04, unit=False),))

    def forward(self, x):
        y = self.second(self.act(self.conv(x))).flatten(2)
        return self.last(self.product(y, y.transpose(1, 2)))


def image(seed=0):
    return torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
