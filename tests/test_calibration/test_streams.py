"""Skip connections carry what layers get, in codes, wherever the model is: solved, loaded again."""

import copy

import pytest
import torch

from mmbitsplit.calibration import calibrate
from mmbitsplit.export.packed_checkpoint import pack_checkpoint, unpack_state
from mmbitsplit.export.packed_summary import summarise
from mmbitsplit.functional import fake_quantize
from mmbitsplit.models import describe, quantized_layers, rebuild
from mmbitsplit.models.layers.streams import rounded_streams, stream_qparams, streams_through

W3A3 = {'weight': {'num_bits': 3}, 'activation': {'num_bits': 3, 'placement': 'qdrop'}}
METHODS = [{'type': 'BitSplit'}, {'type': 'QDrop', 'iterations': 3, 'scale_rate': 0.1}]
LEARN_SCALES = [{'type': 'BRECQ', 'iterations': 3, 'input_iterations': 3, 'input_rate': 0.1},
                {'type': 'AdaQuant', 'iterations': 3}]
ADDED_UP = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture(params=METHODS, ids=lambda method: method['type'])
def solved(request, residual_net, images, make_spec, run_model):
    """A residual net with its streams quantized, its images, its report."""
    model, batches = residual_net(), images(4)
    prepared, report = calibrate(model, batches, make_spec(**W3A3, method=request.param),
                                 run=run_model)
    return prepared, batches, report


def by_hand(model, streams, x):
    """What the net computes, each skip connection written out with codes."""
    layers = dict(quantized_layers(model))

    def rounded(name, value):
        return fake_quantize(value, streams[name])
    x = rounded('relu', layers['stem'](x).relu())
    for name in ('blocks.0', 'blocks.1'):
        inner = layers[f'{name}.conv1'](x).relu()
        x = rounded(name, (layers[f'{name}.conv2'](inner) + x).relu())
    return layers['classify'](x.mean((2, 3))), layers['regress'](x)


def test_the_skip_carries_quantized_values(solved):
    prepared, batches, _ = solved
    streams = {name: stream_qparams(module) for name, module in rounded_streams(prepared.model)}
    assert set(streams) == {'relu', 'blocks.0', 'blocks.1'}
    seen = []
    handle = prepared.model.blocks[1].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        outputs, wanted = prepared.model(batches[0]), by_hand(prepared.model, streams, batches[0])
        handle.remove()
        with streams_through():
            through = prepared.model(batches[0])
    for output, expected, other in zip(outputs, wanted, through):
        torch.testing.assert_close(output, expected, **ADDED_UP)
        assert not torch.allclose(output, other, **ADDED_UP)
    assert 2 < len(seen[0].unique()) <= 8  # codes of 3 bits


def assert_shared(prepared):
    """Layers that read a stream have its scale and range."""
    streams = {name: stream_qparams(module) for name, module in rounded_streams(prepared.model)}
    for plan in prepared.plan.layers:
        qparams = prepared.layers[plan.name].qparams
        if plan.stream:
            assert torch.equal(qparams.scale, streams[plan.stream].scale)
            assert (qparams.quant_min, qparams.quant_max) == (0, 7 if plan.role == 'inner' else 255)


def test_who_reads_a_stream_has_its_codes(solved):
    prepared, _, report = solved
    assert_shared(prepared)
    searches = {layer.name: layer.scale_search for layer in report.layers}
    assert [name for name, search in searches.items() if search == 'shared'] == [
        'blocks.0.conv1', 'blocks.1.conv1', 'regress']


@pytest.mark.parametrize('method', LEARN_SCALES, ids=lambda method: method['type'])
def test_methods_that_learn_input_scales_leave_a_stream_s_alone(residual_net, images, make_spec,
                                                                run_model, method):
    assert_shared(calibrate(residual_net(), images(4), make_spec(**W3A3, method=method),
                            run=run_model)[0])


def test_the_model_is_the_same_when_it_is_loaded_again_and_when_it_is_copied(solved, residual_net):
    prepared, batches, _ = solved
    model, other = prepared.model, residual_net()
    packed = unpack_state(pack_checkpoint(model.state_dict(), describe(prepared), {})['state_dict'])
    rebuild(other, packed.description)
    other.load_state_dict(packed.state)
    with torch.no_grad():
        wanted = model(batches[0])
        for again in (other, copy.deepcopy(model)):
            for output, expected in zip(again(batches[0]), wanted):
                assert torch.equal(output, expected)


def test_without_the_option_nothing_of_it_is_in_the_model(residual_net, images, make_spec,
                                                          run_model):
    prepared, _ = calibrate(residual_net(), images(), make_spec(), run=run_model)
    assert not list(rounded_streams(prepared.model))
    assert not [name for name in prepared.model.state_dict() if 'stream' in name]


def test_an_error_on_the_way_leaves_the_float_model(residual_net, images, make_spec, run_model):
    model = residual_net()
    before = [value.clone() for value in model(images()[0])]

    def progress(step):
        if step.stage == 'layers' and step.done == 3:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, images(), make_spec(**W3A3), run=run_model, progress=progress)
    assert not list(rounded_streams(model)) and not any(
        module._forward_hooks for module in model.modules())
    assert all(torch.equal(*pair) for pair in zip(model(images()[0]), before))


def test_where_a_skip_stays_float_the_report_says_so(seeded, images, make_spec, run_model):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 4, 3)
            self.conv, self.head = torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = torch.relu(self.stem(x) * 2)
            return self.head(self.conv(x) + x)

    _, report = calibrate(seeded(Net), images(), make_spec(**W3A3), run=run_model)
    assert any('1 tensor(s)' in text and 'read by conv' in text for text in report.warnings)


def test_a_method_that_moves_scales_one_by_one_is_refused(residual_net, images, make_spec,
                                                          run_model):
    with pytest.raises(ValueError, match="LAPQ moves the input scales.*placement='inputs'"):
        calibrate(residual_net(), images(), make_spec(**W3A3, method={'type': 'LAPQ'}),
                  run=run_model)


def test_a_file_says_which_streams_it_has(solved):
    prepared, _, _ = solved
    packed = pack_checkpoint(prepared.model.state_dict(), describe(prepared), {})
    found = summarise(unpack_state(packed['state_dict']), 1)
    assert {stream['name']: stream['num_bits'] for stream in found['streams']} == {
        'relu': 3, 'blocks.0': 3, 'blocks.1': 8}
