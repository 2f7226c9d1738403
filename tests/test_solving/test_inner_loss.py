"""What layers read, compared with what they read in the float model."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import quantized_layers
from mmbitsplit.solving.tuning import InnerLoss
from mmbitsplit.solving.tuning.inner_loss import mean_of


def test_the_loss_is_the_squared_change_of_inputs_over_their_variance(seeded):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    wanted = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU()))(x).detach()
    stage = dict(type='OutputTuning', inner=1.0, steps=1)
    report = quantize_model(model, [x, x.clone()], dict(
        weight=dict(num_bits=2), activation=dict(num_bits=None),
        first_last=dict(weight_bits=None), tuning=[stage]))
    assert report.tuning[0]['options']['inner'] == 1.0
    layers = dict(quantized_layers(model))
    found = model[:2](x).detach()
    inner = InnerLoss(layers)
    inner.wanted = [('0', x), ('2', wanted)]
    with inner.comparing() as terms:
        model(x)
    expected = (found - wanted).square().mean() / wanted.var(correction=0)
    assert float(expected) > 0
    assert float(mean_of(terms)) == pytest.approx(float(expected), rel=1e-4)  # the image is equal


def test_a_layer_that_is_called_otherwise_is_named(seeded):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)))
    inner = InnerLoss({'0': model[0], '2': model[2]})
    with inner.recording():
        model(torch.ones(2, 6))
    assert [name for name, _ in inner.wanted] == ['0', '2']
    with inner.comparing(), pytest.raises(ValueError, match="layer '0' is not called as in the"):
        model(torch.ones(3, 6))
