"""The wrapper turns into the quantized model when its checkpoint is loaded."""

import pytest
import torch
from mmengine.registry import HOOKS, MODELS
from mmengine.runner.checkpoint import load_state_dict

from mmbitsplit.calibration import calibrate
from mmbitsplit.engine import QuantizationHook, QuantizedModel
from mmbitsplit.engine.model_wrapper import PLAN_KEY, decode_plan, encode_plan
from mmbitsplit.models import QuantizedLayer, describe
from mmbitsplit.structures import QuantSpec


@pytest.fixture(params=['per_tensor', 'per_channel', 'ecaq', None])
def quantized(request, toy_model):
    """A wrapped quantized model, an input and the state to save."""
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    activation = dict(num_bits=None) if request.param is None else dict(mode=request.param)
    prepared, _ = calibrate(toy_model(), [x, x + 0.1], QuantSpec.from_dict(dict(
        activation=activation)), run=lambda model, batch: model(batch))
    wrapper = QuantizedModel(prepared.model)
    wrapper.set_plan(describe(prepared))
    return wrapper, x, {name: value.clone() for name, value in wrapper.state_dict().items()}


def test_registered_for_configs_of_other_scopes(det_scope):
    assert HOOKS.get('mmbitsplit.QuantizationHook') is QuantizationHook
    assert MODELS.get('mmbitsplit.QuantizedModel') is QuantizedModel
    assert isinstance(HOOKS.build(dict(type='mmbitsplit.QuantizationHook')), QuantizationHook)


@pytest.mark.parametrize('load', [
    lambda model, state: model.load_state_dict(state),
    lambda model, state: load_state_dict(model, state, strict=True)])  # as mmengine loads
def test_a_fresh_model_loads_the_state_exactly(load, quantized, toy_model):
    wrapper, x, state = quantized
    fresh = QuantizedModel(toy_model(seed=5)).eval()
    load(fresh, state)
    with torch.no_grad():
        assert torch.equal(fresh(x), wrapper(x))
    assert isinstance(fresh.model.conv, QuantizedLayer)
    assert isinstance(fresh.model.bn, torch.nn.Identity)
    again = fresh.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    load(fresh, state)  # a second time
    with torch.no_grad():
        assert torch.equal(fresh(x), wrapper(x))


def test_the_state_is_small_and_plain(quantized, toy_model, tmp_path):
    _, _, state = quantized
    torch.save(state, tmp_path / 'state.pth')
    loaded = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert loaded.keys() == state.keys()
    codes = [value for name, value in state.items() if name.endswith('codes')]
    assert len(codes) == 3 and all(value.dtype == torch.uint8 for value in codes)
    assert not any(name.endswith('.weight') for name in state)


def test_attributes_are_those_of_the_model(quantized):
    wrapper = quantized[0]
    assert wrapper.describe_me('model') == 'toy model'
    assert wrapper.head is wrapper.model.head
    assert wrapper.data_preprocessor is wrapper.model.data_preprocessor
    with pytest.raises(AttributeError, match='no_such_thing'):
        _ = wrapper.no_such_thing


def test_steps_go_to_the_model(quantized):
    wrapper, x, _ = quantized
    wrapper.model.test_step = lambda data: ['test', data]
    wrapper.model.val_step = lambda data: ['val', data]
    assert wrapper.test_step(1) == ['test', 1] and wrapper.val_step(2) == ['val', 2]
    with pytest.raises(ValueError, match='cannot be trained'):
        wrapper.train_step({})
    before = wrapper(x)
    wrapper.init_weights()
    assert torch.equal(wrapper(x), before)


def test_a_float_checkpoint_is_refused(toy_model):
    for load in (lambda model, state: model.load_state_dict(state, strict=False),
                 lambda model, state: load_state_dict(model, state)):
        with pytest.raises(ValueError, match='no quantization plan.*quantized.pth'):
            load(QuantizedModel(toy_model()), toy_model().state_dict())


def test_another_architecture_is_refused_by_the_layer(quantized, toy_model):
    state = quantized[2]
    model = toy_model()
    del model.middle
    with pytest.raises(ValueError, match="'middle' is not in the model"):
        QuantizedModel(model).load_state_dict(state)
    model = toy_model()
    model.head = torch.nn.Conv2d(4, 2, 1)
    with pytest.raises(ValueError, match="'head'.*has a linear where the model has a conv2d"):
        QuantizedModel(model).load_state_dict(state)


@pytest.mark.parametrize('plan', [
    {}, {'layers': {'a.b': {'kind': 'conv2d', 'input': None, 'bias': True}}, 'folded': ['é']}])
def test_plan_round_trip(plan):
    encoded = encode_plan(plan)
    assert encoded.dtype == torch.uint8 and encoded.dim() == 1
    assert decode_plan(encoded) == plan


def test_an_unloaded_wrapper_has_no_plan(toy_model):
    assert QuantizedModel(toy_model()).state_dict()[PLAN_KEY].numel() == 0
