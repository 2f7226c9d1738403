"""What is taken of an input is what a copy of it with the channels first would give."""

import pytest
import torch
from torch import nn

from mmbitsplit.functional import channel_dim
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.passes.capture import SAMPLES_PER_LAYER, Sampler, channel_extremes
from mmbitsplit.passes.sampling import draw_with_repeats, rows_per_call
from mmbitsplit.structures import CalibrationSpec

LAYERS = {'conv': (nn.Conv2d(5, 4, 3), (3, 5, 8, 9)),
          'one_image': (nn.Conv2d(5, 4, 3), (1, 5, 8, 9)),
          'linear': (nn.Linear(6, 4), (7, 6)), 'tokens': (nn.Linear(6, 4), (2, 5, 6)),
          'vector': (nn.Linear(6, 4), (6,)), 'no_boxes': (nn.Linear(6, 4), (0, 6)),
          'no_regions': (nn.Conv2d(5, 4, 3), (0, 5, 8, 9))}


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer, an input, and the input's channels first, as a copy (C, positions)."""
    module, shape = LAYERS[request.param]
    layer = QuantizedLayer(layer_geometry(module), module.weight, module.bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    first = x.movedim(channel_dim(layer.geometry), 0)
    return layer, x, first.reshape(len(first), x.numel() // len(first))


@pytest.mark.parametrize('batches', [1, SAMPLES_PER_LAYER // 8])
def test_samples_are_columns_of_the_channels(case, batches):
    layer, x, columns = case
    capture = Sampler(CalibrationSpec(seed=3), batches, {'a': 1}).capture('a', layer, 0, 0, x)
    wanted = rows_per_call(SAMPLES_PER_LAYER, batches, 1)
    chosen = draw_with_repeats(columns.shape[1], wanted, (3, 'a', 0, 0, 'inputs'))
    assert torch.equal(capture.samples, columns[:, chosen])
    assert capture.samples.is_contiguous()
    assert capture.shape == tuple(x.shape)


def test_ranges_are_those_of_the_whole_input(case):
    layer, x, columns = case
    capture = Sampler(CalibrationSpec(), 1000, {'a': 1}).capture('a', layer, 0, 0, x)
    for found, reduce in ((capture.low, torch.amin), (capture.high, torch.amax)):
        expected = reduce(columns, 1) if columns.numel() else torch.zeros(len(columns))
        assert torch.equal(found, expected)


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
def test_extremes_do_not_depend_on_the_order_in_memory(order):
    values = torch.randn(3, 4, 5, 6).permute(order)
    low, high = channel_extremes(values)
    assert torch.equal(low, values.flatten(1).amin(1))
    assert torch.equal(high, values.flatten(1).amax(1))
