"""Attention is quantized like anything else, once its calls are opened."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.models import describe, rebuild
from mmbitsplit.models.opening import OpenedCallError, opened_modules
from mmbitsplit.structures import (
    ActivationSpec,
    CalibrationSpec,
    OverrideSpec,
    QuantSpec,
    WeightSpec,
)

DIM = 32


class Detr(nn.Module):
    """Patches, an encoder with torch's fused path, and queries that attend to it."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(DIM, 4, 64, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(DIM, 4, 64, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 5, DIM))
        self.mix = nn.Parameter(torch.randn(DIM, 6) / DIM ** 0.5)
        self.head = nn.Linear(6, 10)

    def forward(self, images):
        tokens = self.encoder(self.patch(images).flatten(2).mT)
        found = self.decoder(self.queries.expand(images.shape[0], -1, -1), tokens)
        return self.head(found @ self.mix)


def _spec(bits=8, **options):
    options = {'method': {'type': 'RoundToNearest'}, **options}
    return QuantSpec(weight=WeightSpec(num_bits=bits), activation=ActivationSpec(num_bits=bits),
                     calibration=CalibrationSpec(num_images=8, batch_size=4, rows_per_layer=64),
                     **options)


@pytest.fixture(scope='module')
def quantized():
    torch.manual_seed(0)
    model, batches = Detr().eval(), [torch.randn(4, 3, 16, 16) for _ in range(2)]
    float_model = copy.deepcopy(model)
    prepared, report = calibrate(model, batches, _spec(), run=lambda model, batch: model(batch))
    return float_model, prepared, report, batches[0]


def test_its_projections_are_layers_and_the_error_is_small(quantized):
    float_model, prepared, report, images = quantized
    names = {row.name for row in report.layers}
    assert {'encoder.self_attn.in_proj', 'encoder.self_attn.out_proj', 'linear_0',
            'decoder.multihead_attn.q_proj', 'decoder.multihead_attn.v_proj'} <= names
    assert all(row.num_weights < 2000 for row in report.kept_float)  # the queries alone
    with torch.no_grad():
        expected, found = float_model(images), prepared.model(images)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.03


def test_a_file_holds_each_weight_once_and_gives_the_model_back(quantized):
    _, prepared, _, images = quantized
    state, fresh = prepared.model.state_dict(), Detr().eval()
    assert not [name for name in state if name.endswith(('in_proj_weight', 'mix', 'proj.weight'))]
    rebuild(fresh, json.loads(json.dumps(describe(prepared))))
    fresh.load_state_dict(state)
    copied = copy.deepcopy(fresh)
    with torch.no_grad():
        expected = prepared.model(images)
        assert torch.equal(fresh(images), expected) and torch.equal(copied(images), expected)


def test_what_reads_an_opened_parameter_gets_it_dequantized(quantized):
    float_model, prepared, _, _ = quantized
    for name in ('encoder.self_attn', 'decoder.multihead_attn'):
        was, now = (model.get_submodule(name).in_proj_weight for model in (
            float_model, prepared.model))
        assert 0 < float((was - now).abs().max()) < 0.01


def test_an_error_leaves_the_model_closed():
    model, batches = Detr().eval(), [torch.randn(4, 3, 16, 16)] * 2
    before = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())

    def stop(plan):
        assert opened_modules(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, batches, _spec(), run=lambda model, batch: model(batch), planned=stop)
    assert before == {name: type(module) for name, module in model.named_modules()}
    assert list(model.state_dict()) == keys


class Windows(nn.Module):
    """Multiplies once for each window, of which larger images have more."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(DIM, DIM), nn.Linear(DIM, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([part @ part.mT @ part for part in x.split(4, 1)], 1))


def test_another_number_of_products_is_an_error_that_names_the_module_and_the_way_out():
    def model():
        return nn.Sequential(nn.Linear(DIM, DIM), Windows()).eval()

    batches = [torch.randn(2, 4, DIM), torch.randn(2, 8, DIM)]
    with pytest.raises(OpenedCallError, match="Module '1' multiplies more often"):
        calibrate(model(), batches, _spec(), run=lambda model, batch: model(batch))
    _, report = calibrate(model(), batches, _spec(overrides=[OverrideSpec(match='1', skip=True)]),
                          run=lambda model, batch: model(batch))
    assert ('1.<matmul>', 'left closed by the request') in [
        (row.name, row.reason) for row in report.kept_float]
    with pytest.raises(ValueError, match='matches no layer'):
        spec = _spec(overrides=[OverrideSpec(match='0.in_proj', skip=True)])
        calibrate(model(), batches[:1], spec, run=lambda model, batch: model(batch))


def test_a_layer_that_was_never_called_is_called():
    class Scaled(nn.Module):
        """As BEiT and Swin-V2: the layer holds the weight, the bias is put together."""

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(DIM, DIM, bias=False)
            self.bias = nn.Parameter(torch.randn(DIM // 2))

        def forward(self, x):
            bias = torch.cat([self.bias, torch.zeros_like(self.bias)])
            return F.linear(x, self.qkv.weight, bias)

    model = nn.Sequential(nn.Linear(DIM, DIM), Scaled(), nn.Linear(DIM, 4)).eval()
    x, was = torch.randn(8, DIM), copy.deepcopy(model)
    _, report = calibrate(model, [x, x], _spec(), run=lambda model, batch: model(batch))
    assert [row.name for row in report.layers] == ['0', '1.qkv', '2']
    with torch.no_grad():
        assert float((was(x) - model(x)).norm() / was(x).norm()) < 0.03


class Direct(nn.Module):
    """Calls what its layer's class defines in place of the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.last(F.relu(self.first.forward(images)))


def test_a_layer_whose_forward_is_called_rounds_nothing_twice():
    torch.manual_seed(0)
    model, batches = Direct().eval(), [torch.randn(4, 3, 16, 16) for _ in range(2)]
    with torch.no_grad():
        expected = model(batches[0])
        _, report = calibrate(model, batches, _spec(), run=lambda model, batch: model(batch))
        error = (model(batches[0]) - expected).norm() / expected.norm()
    assert error < 0.01 and [row.name for row in report.layers] == ['last']
    assert any('forward, which is called itself' in part.reason for part in report.kept_float)
    assert report.multiplications['uncounted'] == 1


@pytest.mark.parametrize('bits', [3, 8])
def test_a_conv1d_is_what_a_conv2d_of_height_one_is(bits):
    """The same codes and outputs, with each of its options; padding by a mode is its own call."""
    options = (dict(padding=1, bias=False), dict(padding='same', dilation=2, groups=4),
               dict(stride=2, padding=1, padding_mode='reflect'))
    torch.manual_seed(0)
    lines = nn.Sequential(nn.Conv1d(8, 8, 3), *(nn.Conv1d(8, 8, 3, **one) for one in options))
    flat = nn.Sequential(*(nn.Conv2d(8, 8, (1, 3), **{
        name: (0, value) if name == 'padding' and value == 1 else
        (1, value) if name in ('stride', 'dilation') else value
        for name, value in one.items()}) for one in ({}, *options)))
    flat.load_state_dict({name: value.unsqueeze(2) if value.dim() == 3 else value
                          for name, value in lines.state_dict().items()})
    batches = [torch.randn(4, 8, 40) for _ in range(2)]
    for model, given in ((lines, batches), (flat, [x.unsqueeze(2) for x in batches])):
        spec = replace(_spec(bits), calibration=CalibrationSpec(  # all positions are looked at
            num_images=8, batch_size=4, rows_per_layer=4096))
        _, report = calibrate(model.eval(), given, spec, run=lambda model, x: model(x))
        assert len(report.layers) == 4 and not report.kept_float
    torch.testing.assert_close(lines(batches[0]), flat(batches[0].unsqueeze(2)).squeeze(2))
    for one, other in zip(lines, flat):
        assert torch.equal(one.conv_0.weight, other.weight)
