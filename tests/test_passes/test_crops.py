"""Crops of a convolutional unit give what the whole map gives at the same place."""

import pytest
import torch
from torch import nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.passes.crops import find_crops


class Block(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, stride, 1), nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(4, 6, 1, stride)

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))) + self.down(x))


UNITS = {
    'a residual block': lambda: Block(1),
    'a block with stride': lambda: Block(2),
    'no padding': lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    'pooling': lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(5, 1, 2)),
    'strides in a row': lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 5, 2, 2)),
    'a tower': lambda: nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))),
}


@pytest.mark.parametrize('make', UNITS)
@pytest.mark.parametrize('size', [96, 128])
def test_a_crop_gives_what_the_whole_gives(make, size):
    torch.manual_seed(0)
    unit, x = UNITS[make]().double(), torch.randn(2, 4, size, size, dtype=torch.float64)
    y = unit(x)
    geometries = [layer_geometry(module) for module in unit.modules()
                  if isinstance(module, nn.Conv2d)]
    crops = find_crops(geometries, unit.modules(), x, y)
    assert crops is not None and crops.fit(x)
    places = torch.cat([crops.draw(x, (0, make, step)) for step in range(40)])
    assert len(places.unique(dim=0)) > 10
    cut = crops.inputs(x, places)
    assert cut.shape == (40, 4, crops.size, crops.size)
    torch.testing.assert_close(crops.inside(unit(cut)), crops.outputs(y, places))


def test_layers_that_are_no_convolutions_have_no_crops():
    x = torch.randn(1, 4, 64, 64)
    linear, up = layer_geometry(nn.Linear(4, 4)), layer_geometry(nn.ConvTranspose2d(4, 4, 2, 2))
    assert find_crops([linear], [], x, x) is None
    assert find_crops([up], [], x, torch.randn(1, 4, 128, 128)) is None


def test_the_same_key_draws_the_same_places():
    x = torch.randn(3, 4, 90, 70)
    crops = find_crops([layer_geometry(nn.Conv2d(4, 4, 3, padding=1))], [], x, x)
    assert torch.equal(crops.draw(x, (1, 'unit')), crops.draw(x, (1, 'unit')))
    assert not torch.equal(torch.cat([crops.draw(x, (1, step)) for step in range(9)]),
                           torch.cat([crops.draw(x, (2, step)) for step in range(9)]))
