"""No calibration images: the codes are those that any images would have given."""

import pytest
import torch

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import METHODS, build_method, calibrate, read_request
from mmbitsplit.models import QuantizedLayer

FREE = sorted(name for name, cls in METHODS.items() if not cls().looks_at_images)
WEIGHTS_ONLY = dict(activation=dict(num_bits=None))


def test_which_methods_need_no_images():
    assert FREE == ['ACIQ', 'ACIQMix', 'KLDivergence', 'MSE', 'RoundToNearest']


@pytest.mark.parametrize('name', FREE)
def test_the_same_codes_as_with_images(name, residual_net, images, assert_same_state):
    with_images, without = residual_net(), residual_net()
    spec = dict(method=dict(type=name), weight=dict(num_bits=3), **WEIGHTS_ONLY)
    quantize_model(with_images, images(), spec)
    example = torch.zeros(1, 3, 8, 8)  # any values: only its way through the model is looked at
    report = quantize_model(without, [example], {**spec, 'calibration': dict(num_images=0)})
    assert_same_state(without, with_images)
    assert len(report.layers) == 7 and len(report.folded_batch_norms) == 5
    assert all(layer.rows == layer.calls == 0 for layer in report.layers)
    assert all('no image was looked at' in layer.notes[0] for layer in report.layers)
    assert all(0 < layer.error < 1 and layer.error_rounding > 0 for layer in report.layers)
    with torch.no_grad():
        assert all(torch.isfinite(y).all() for y in without(images()[0]))


def test_errors_are_those_of_the_weights(residual_net):
    model, wanted = residual_net(), residual_net()
    report = quantize_model(model, [torch.zeros(1, 3, 8, 8)], dict(
        method=dict(type='MSE'), calibration=dict(num_images=0), **WEIGHTS_ONLY))
    weight = wanted.classify.weight.detach()
    error = (model.classify.weight - weight).square().sum() / weight.square().sum()
    row = next(layer for layer in report.layers if layer.name == 'classify')
    assert row.error == pytest.approx(float(error), rel=1e-4)
    assert row.error == pytest.approx(row.error_rounding)


@pytest.mark.parametrize('name', sorted(set(METHODS) - set(FREE)))
def test_methods_that_look_at_images_are_refused(name, residual_net):
    model = residual_net()
    with pytest.raises(ValueError, match=f'num_images=0: {name} .*calibration images.*MSE'):
        quantize_model(model, [torch.zeros(1, 3, 8, 8)], dict(
            method=dict(type=name), calibration=dict(num_images=0), **WEIGHTS_ONLY))
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())


def test_an_option_that_looks_at_images_is_refused():
    assert build_method(dict(type='MSE', bias_correction=True)).looks_at_images
    with pytest.raises(ValueError, match='with these options'):
        read_request(dict(method=dict(type='MSE', bias_correction=True),
                          calibration=dict(num_images=0), **WEIGHTS_ONLY))


@pytest.mark.parametrize('changes', [
    dict(), dict(activation=dict(num_bits=8)),
    dict(**WEIGHTS_ONLY, overrides=[dict(match='stem', activation=dict(num_bits=4))])])
def test_quantized_inputs_are_refused(changes):
    with pytest.raises(ValueError, match='num_images=0: inputs are to be quantized.*num_bits=None'):
        read_request(dict(method=dict(type='MSE'), calibration=dict(num_images=0), **changes))


def test_something_to_look_at_is_needed(residual_net, run_model):
    spec = read_request(dict(method=dict(type='MSE'), calibration=dict(num_images=0),
                             **WEIGHTS_ONLY))
    with pytest.raises(ValueError, match='empty'):
        calibrate(residual_net(), [], spec, run=run_model)
