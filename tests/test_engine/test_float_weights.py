"""A checkpoint that does not belong to the model is an error, however it is wrong."""

from pathlib import Path

import pytest
import torch

from mmbitsplit.engine.run.float_weights import check_float_weights

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def refuse(toy_model, tmp_path):
    def check(content, message):
        path = tmp_path / 'float.pth'
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=message) as error:
            check_float_weights(toy_model(), str(path))
        assert str(path) in str(error.value) and '\n' not in str(error.value)
    return check


def test_weights_of_the_model_pass_in_every_form_that_is_in_use(toy_model, tmp_path):
    state = toy_model().state_dict()
    old = {name: value for name, value in state.items() if 'num_batches' not in name}
    parallel = {f'module.{name}': value for name, value in state.items()}
    for content in (state, {'state_dict': state, 'meta': {}}, {'state_dict': parallel},
                    {**old, 'more': torch.zeros(1)}):
        torch.save(content, tmp_path / 'a.pth')
        check_float_weights(toy_model(), str(tmp_path / 'a.pth'))


def test_weights_that_the_model_itself_converts_pass(toy_model, tmp_path):
    """As mmpretrain's transformers do with names and tables of older versions."""
    def rename(state, prefix, *_):
        if prefix + 'old_bias' in state:
            state[prefix + 'bias'] = state.pop(prefix + 'old_bias').flatten()

    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {**model.state_dict(), 'head.old_bias': torch.full((1, 2), 9.0)}
    del state['head.bias']
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='1 tensors are missing'):
        check_float_weights(model, str(tmp_path / 'a.pth'))
    model.head._register_load_state_dict_pre_hook(rename)
    check_float_weights(model, str(tmp_path / 'a.pth'))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\x03\x04 cut off'])
def test_what_is_no_checkpoint_is_named(content, refuse):
    refuse(content, 'is truncated, damaged or no checkpoint')


@pytest.mark.parametrize('content', [[1, 2], torch.zeros(3), {'state_dict': 5}])
def test_what_holds_no_weights_is_named(content, refuse):
    refuse(content, 'holds no weights by name')


def test_another_model_s_weights_are_refused(toy_model, refuse):
    state = toy_model().state_dict()
    refuse({name: value for name, value in state.items() if name != 'head.bias'},
           r'1 tensors are missing \(such as head.bias\)')
    refuse({**state, 'head.bias': torch.zeros(7)},
           r'1 have another shape \(such as head.bias: \(7,\), the model has \(2,\)\)')


def test_a_quantized_checkpoint_is_told_from_float_weights(toy_model):
    path = PROJECT / 'tests/packed_files/packed_v2.pth'
    with pytest.raises(ValueError, match='is a quantized checkpoint.*quantized_config.py'):
        check_float_weights(toy_model(), str(path))
