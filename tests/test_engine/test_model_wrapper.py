"""The wrapper turns into the quantized model when its checkpoint is loaded."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict

from mmbitsplit.calibration import calibrate
from mmbitsplit.engine import QuantizationHook, QuantizedModel
from mmbitsplit.engine.run.model_wrapper import PLAN_KEY, decode_plan, encode_plan
from mmbitsplit.export import (
    HEADER_KEY,
    PAYLOAD_KEY,
    pack_checkpoint,
    read_checkpoint,
    unpack_state,
)
from mmbitsplit.models import QuantizedLayer, describe, rebuild
from mmbitsplit.structures import QuantSpec

FILES = Path(__file__).parents[1] / 'packed_files'
LOADERS = [lambda model, state: model.load_state_dict(state),
           lambda model, state: model.load_state_dict(state, strict=False),
           lambda model, state: load_state_dict(model, state)]  # as mmengine loads: it only warns
# What the quantized model of the packed files made of its inputs when the first was written.
OUTPUTS = [[0.59452885389328, 2.5346169471740723], [0.5812940001487732, 1.8500930070877075],
           [0.46611571311950684, 1.9751917123794556], [0.4921668767929077, 2.803029775619507]]


@pytest.fixture(scope='module', params=['per_tensor', 'per_channel', 'ecaq', None])
def calibrated(request, toy_model):
    """A wrapped quantized model and an input."""
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    activation = dict(num_bits=None) if request.param is None else dict(mode=request.param)
    prepared, _ = calibrate(toy_model(), [x, x + 0.1], QuantSpec.from_dict(dict(
        activation=activation)), run=lambda model, batch: model(batch))
    wrapper = QuantizedModel(prepared.model)
    wrapper.note_description(describe(prepared))
    return wrapper, x


@pytest.fixture
def quantized(calibrated):
    """The same for one test alone, and the state to save."""
    wrapper, x = copy.deepcopy(calibrated)
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


def packed_state(state):
    """The state dict that goes into a file, of one that is in memory."""
    tensors = {name: value for name, value in state.items() if name != PLAN_KEY}
    return pack_checkpoint(tensors, decode_plan(state[PLAN_KEY]), {})['state_dict']


@pytest.mark.parametrize('load', LOADERS)
def test_a_packed_state_loads_exactly_and_is_left_alone(load, quantized, toy_model):
    wrapper, x, state = quantized
    packed = packed_state(state)
    before = {name: value.clone() for name, value in packed.items()}
    for model in (QuantizedModel(toy_model(seed=5)).eval(),) * 2:  # the second time as well
        load(model, packed)
        with torch.no_grad():
            assert torch.equal(model(x), wrapper(x))
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert packed.keys() == before.keys()
    assert all(torch.equal(packed[name], before[name]) for name in before)


@pytest.mark.parametrize('key', [HEADER_KEY, PAYLOAD_KEY])
@pytest.mark.parametrize('load', LOADERS)
def test_damage_is_refused_by_every_loader(load, key, quantized, toy_model):
    packed = packed_state(quantized[2])
    for position in (0, 10, len(packed[key]) // 2, len(packed[key]) - 1):
        damaged = copy.deepcopy(packed)
        damaged[key][position] ^= 4
        model = QuantizedModel(toy_model())
        with pytest.raises(ValueError, match='damaged'):
            load(model, damaged)
        assert type(model.model.conv) is torch.nn.Conv2d  # nothing was begun


@pytest.mark.parametrize('change, message', [
    (lambda state: state.pop('model.middle.codes'), 'lacks 1 tensor.*model.middle.codes'),
    (lambda state: state.pop('model.head.bias'), 'lacks 1 tensor.*model.head.bias'),
    (lambda state: state.update({'model.extra': torch.zeros(1)}), 'beyond the model.*model.extra'),
    (lambda state: state.update({'model.conv.bias': torch.zeros(9)}), 'another shape.*conv.bias')])
@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('load', LOADERS)
def test_missing_and_extra_tensors_are_refused_by_every_loader(load, packed, change, message,
                                                               quantized, toy_model):
    state = dict(quantized[2])
    change(state)
    with pytest.raises(ValueError, match=message):
        load(QuantizedModel(toy_model()), packed_state(state) if packed else state)


@pytest.mark.parametrize('change, message', [
    (lambda model: setattr(model, 'extra', torch.nn.Conv2d(4, 4, 1)), 'lacks 2.*model.extra'),
    (lambda model: setattr(model, 'bn', torch.nn.Sequential()), None),
    (lambda model: setattr(model, 'middle', torch.nn.Conv2d(4, 4, 1, stride=2)),
     r"'middle': .*default geometry where the model has \{'stride': \[2, 2\]\}.*config"),
    (lambda model: setattr(model, 'middle', torch.nn.Conv2d(4, 8, 1)), "'middle': .*of shape"),
    (lambda model: setattr(model, 'middle', torch.nn.ReLU()), "'middle': ReLU is not supported")])
@pytest.mark.parametrize('load', LOADERS)
def test_other_architectures_are_refused_by_every_loader(load, change, message, quantized,
                                                         toy_model):
    model = toy_model()
    change(model)
    if message is None:  # what is folded away anyway
        load(QuantizedModel(model), packed_state(quantized[2]))
        return
    with pytest.raises(ValueError, match=message):
        load(QuantizedModel(model), packed_state(quantized[2]))


def test_a_refused_architecture_leaves_the_model_as_it_was(quantized, toy_model):
    model = toy_model()
    model.head = torch.nn.Conv2d(4, 2, 1)  # the last layer
    wrapper = QuantizedModel(model)
    with pytest.raises(ValueError, match="'head'"):
        wrapper.load_state_dict(packed_state(quantized[2]))
    assert not any(isinstance(module, QuantizedLayer) for module in wrapper.modules())


def test_a_second_checkpoint_wants_a_fresh_model(quantized, toy_model):
    state = quantized[2]
    model = QuantizedModel(toy_model())
    model.load_state_dict(state)
    plan = decode_plan(state[PLAN_KEY])
    plan['layers']['middle']['num_bits'] = 7
    with pytest.raises(ValueError, match='holds another quantized checkpoint'):
        model.load_state_dict({**state, PLAN_KEY: encode_plan(plan)})


def test_layers_are_rebuilt_on_the_device_of_the_model(quantized, toy_model):
    """A Runner moves the model to its device before it loads the checkpoint."""
    model = toy_model().to('meta')
    rebuild(model, decode_plan(quantized[2][PLAN_KEY]))
    tensors = [*model.parameters(), *(value for layer in model.children() for value
                                      in layer.buffers())]
    assert len(tensors) > 9 and {value.device.type for value in tensors} == {'meta'}


@pytest.mark.parametrize('path', sorted(FILES.glob('packed_v*.pth')), ids=lambda path: path.stem)
def test_files_of_every_version_load_as_upstream_loads(path, packed_model):
    x, model = packed_model.inputs(), QuantizedModel(packed_model.float_model(seed=3)).eval()
    checkpoint = load_checkpoint(model, str(path), map_location='cpu')
    assert checkpoint['meta']['dataset_meta'] == {'classes': ['cat', 'dog']}
    with torch.no_grad():
        output = model(x)
    torch.testing.assert_close(output, torch.tensor(OUTPUTS), rtol=1e-5, atol=1e-5)
    reference = QuantizedModel(packed_model.float_model(seed=4)).eval()
    reference.load_state_dict(torch.load(FILES / 'packed_v1.pth', weights_only=True)['state_dict'])
    with torch.no_grad():
        assert torch.equal(output, reference(x))


def test_what_is_written_now_of_one_width_is_of_version_two(packed_model, tmp_path):
    output = packed_model.write(tmp_path)
    written, kept = (read_checkpoint(path) for path in (
        tmp_path / 'quantized.pth', FILES / 'packed_v2.pth'))
    assert written.version == kept.version and written.description == kept.description
    assert written.state.keys() == kept.state.keys()
    model = QuantizedModel(packed_model.float_model()).eval()
    load_checkpoint(model, str(tmp_path / 'quantized.pth'))
    with torch.no_grad():
        assert torch.equal(model(packed_model.inputs()), output)


def test_a_model_given_by_the_name_of_its_type(quantized, toy_model):
    kind = type(toy_model())
    MODELS.register_module(name='ToyModelByName', module=kind)
    try:
        named = MODELS.build(dict(type='mmbitsplit.QuantizedModel', model='ToyModelByName'))
        nested = MODELS.build(dict(type='mmbitsplit.QuantizedModel',
                                   model=dict(type='ToyModelByName')))
        with pytest.raises(TypeError, match='no_such_part'):
            QuantizedModel('ToyModelByName', no_such_part=1)
        with pytest.raises(ValueError, match="'backbone' is not known beside a model"):
            QuantizedModel(toy_model(), backbone={})
    finally:
        MODELS.module_dict.pop('ToyModelByName')
    for model in (named, nested):
        model.load_state_dict(quantized[2])
        assert isinstance(model.model.conv, QuantizedLayer)


def test_unpacking_gives_what_the_model_holds(quantized):
    state = quantized[2]
    unpacked = unpack_state(packed_state(state)).state
    assert set(unpacked) == set(state) - {PLAN_KEY}
    assert all(torch.equal(value, state[name]) for name, value in unpacked.items())
