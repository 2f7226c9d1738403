"""Weights and activations that leave a solver little to work with."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import QuantizedLayer

SPEC = dict(calibration=dict(rows_per_layer=512))
MODES = ('per_tensor', 'per_channel', 'ecaq')


def network(channels: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def images(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, 12, 12, generator=generator) for _ in range(count)]


def quantized(model, batches=None, **spec):
    """Quantizes and returns report and relative error of the outputs."""
    batches = images() if batches is None else batches
    with torch.no_grad():
        wanted = torch.cat([copy.deepcopy(model).eval()(batch) for batch in batches])
    report = quantize_model(model, batches, {**SPEC, **spec})
    with torch.no_grad():
        found = torch.cat([model(batch) for batch in batches])
    assert torch.isfinite(found).all()
    for layer in report.layers:
        assert layer.error == layer.error and layer.error <= layer.error_rounding + 1e-9
    return report, float((found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12))


@pytest.fixture(params=MODES)
def mode(request):
    return dict(activation=dict(mode=request.param))


def test_a_channel_of_zero_variance(mode):
    model = network()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 0.7  # the same value everywhere
    assert quantized(model, **mode)[1] < 0.05


def test_a_dead_channel(mode):
    model = network()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, -1.0  # ReLU lets nothing through
    assert quantized(model, **mode)[1] < 0.05


def test_all_channels_dead(mode):
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    report, error = quantized(model, **mode)
    assert error < 0.01 and len(report.layers) == 4


@pytest.mark.parametrize('method', ['BitSplit', 'RoundToNearest'])
def test_a_row_of_weights_that_is_zero(method):
    model = network()
    with torch.no_grad():
        model[2].weight[2] = 0.0
        model[4].weight[3] = 0.0
    assert quantized(model, method=dict(type=method))[1] < 0.1
    assert (model[2].codes.reshape(6, -1)[2] == 0).all()


def test_all_weights_zero():
    model = network()
    with torch.no_grad():
        model[8].weight.zero_()
        model[8].bias.zero_()
    report, _ = quantized(model)
    assert report.layers[-1].error == 0.0


def test_huge_and_tiny_weights_in_one_layer():
    model = network()
    with torch.no_grad():
        model[2].weight[0] *= 1e6
        model[2].weight[1] *= 1e-6
    assert quantized(model)[1] < 0.05


def test_one_input_and_one_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    batches = [torch.rand(8, 1) for _ in range(4)]
    assert quantized(model, batches)[1] < 0.05


def test_one_position_in_all():
    model = network()
    assert len(quantized(model, images(1)[:1])[0].layers) == 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    assert quantized(model, [torch.rand(1, 5)])[1] < 0.5


def test_a_model_in_train_mode_is_calibrated_as_it_will_be_used():
    model = network()
    model.insert(1, nn.BatchNorm2d(6))
    model.append(nn.Dropout(0.9))
    with torch.no_grad():
        model[1].running_mean.fill_(0.1)
        model[1].running_var.fill_(0.5)
    trained = copy.deepcopy(model).train()
    first, _ = quantized(model.eval())
    second, _ = quantized(trained)
    assert [layer.error for layer in first.layers] == [layer.error for layer in second.layers]
    assert not trained[-1].training and isinstance(trained[1], nn.Identity)  # folded


def test_weights_that_are_not_contiguous():
    model, plain = network(), network()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().transpose(0, 1).contiguous()
                                    .transpose(0, 1))
    model[8].weight = nn.Parameter(model[8].weight.detach().t().contiguous().t())
    assert not any(model[number].weight.is_contiguous() for number in (0, 2, 8))
    first, second = quantized(model)[0], quantized(plain)[0]
    # torch convolves other strides in another order: the last bits of a sum differ.
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert ours.error == pytest.approx(theirs.error, rel=0.05)
        same = model.get_submodule(ours.name).codes == plain.get_submodule(ours.name).codes
        assert same.float().mean() > 0.95


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_refused_with_what_to_do(dtype):
    model = network().to(dtype)
    with pytest.raises(ValueError, match=rf"Layer '0' .*{dtype}.*model\.float\(\)"):
        quantize_model(model, [batch.to(dtype) for batch in images()], SPEC)
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())
    assert quantized(model.float())[1] < 0.05


def test_inputs_without_a_batch():
    with pytest.raises(ValueError, match='calibration set is empty'):
        quantize_model(network(), [], SPEC)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_weights_or_inputs_that_are_not_finite(bad):
    for name, layer in network().named_modules():  # the last one, too: nobody reads what it gives
        if hasattr(layer, 'weight'):
            model = network()
            model.get_submodule(name).weight.data.view(-1)[0] = bad
            with pytest.raises(ValueError, match=f"Layer '{name}' has 1 of .* NaN or infinite"):
                quantize_model(model, images(), SPEC)
    batches = images()
    batches[2][0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match='batch 2'):
        quantize_model(network(), batches, SPEC)
