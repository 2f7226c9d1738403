"""Integers against their simulation: equal where they are right, and a fault shows."""

import pytest
import torch
from torch import nn

from benchmarks.integer_probe import compare_integers
from mmbitsplit.apis import quantize_model
from mmbitsplit.models import to_integer
from mmbitsplit.models.surgery.install import quantized_layers

IMAGES = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
          for seed in range(4)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                          nn.Conv2d(16, 8, 3)).eval()
    quantize_model(model, IMAGES, dict(method=dict(type='RoundToNearest')))
    to_integer(model, 'auto')
    if not [name for name, layer in quantized_layers(model) if layer.integers]:
        pytest.skip('this processor multiplies no integers')
    to_integer(model, False)
    return model


def test_integers_that_are_right(model):
    before = model(IMAGES[0])
    found = compare_integers(model, lambda model: model(IMAGES[0]), ['4'])
    assert found['layers'] == 2 and found['left'] == {'its inputs are float': 1}
    assert found['equal_inputs'] < 1e-5 and found['outputs'] < 1e-3
    assert torch.equal(model(IMAGES[0]), before)  # as it was


def test_a_layer_that_is_wrong_is_named(model, monkeypatch):
    kind = type(model[2])
    right = kind.forward
    monkeypatch.setattr(kind, 'forward', lambda self, x: right(self, x) * (
        1.01 if self is model[2] and self.integers else 1))
    found = compare_integers(model, lambda model: model(IMAGES[0]), ['4'])
    assert found['worst'] == '2' and found['equal_inputs'] == pytest.approx(0.01, rel=0.01)


def test_a_reader_that_takes_maps_in_a_wrong_order_shows_in_the_outputs(model):
    """As mmcv's RoIAlign did with maps channels last: each layer alone is right."""
    def misread(module, args, output):
        if module.integers:
            return output.flip(-1)

    model[2].register_forward_hook(misread)
    found = compare_integers(model, lambda model: model(IMAGES[0]), ['4'])
    assert found['outputs'] > 0.01
