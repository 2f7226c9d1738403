"""Models with which nothing can be done, and names of layers in a message."""

import fnmatch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.planning.model_checks import check_model, check_reached, covering_patterns


def test_a_quantized_model_is_refused_and_says_what_to_do():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(nn.ReLU(), QuantizedLayer(layer_geometry(layer), layer.weight, None))
    with pytest.raises(ValueError, match=r"1 quantized layer.*'1'.*load its weights again"):
        check_model(model)


@pytest.mark.parametrize('make', [
    lambda net: torch.jit.script(net), lambda net: torch.jit.trace(net, torch.ones(1, 2))])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_trace_is_refused(make):
    with pytest.raises(ValueError, match='traced or scripted.*nn.Module that it was made from'):
        check_model(make(nn.Sequential(nn.Linear(2, 2))))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_traced_part_is_refused_by_its_name():
    stem = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'1.0' is traced or scripted.*in its place"):
        check_model(nn.Sequential(nn.Linear(2, 2), nn.Sequential(stem)))


@pytest.mark.parametrize('model, seen', [
    (nn.Sequential(nn.ReLU()), r'no weights at all \(Sequential\)'),
    (nn.Sequential(nn.LSTM(2, 2), nn.LayerNorm(2)), 'LSTM, LayerNorm')])
def test_a_model_without_layers_is_told_what_is_supported_and_what_was_seen(model, seen):
    with pytest.raises(ValueError, match=f'supported are Conv1d, .*Linear.*seen were {seen}'):
        check_model(model)


names = st.lists(st.lists(st.sampled_from('abc'), min_size=1, max_size=4).map('.'.join),
                 unique=True, max_size=12)


@given(names, st.data())
def test_patterns_cover_what_is_chosen_and_nothing_else(layers, data):
    chosen = [name for name in layers if data.draw(st.booleans())]
    patterns = covering_patterns(chosen, layers)
    matched = {name for name in layers for pattern in patterns
               if fnmatch.fnmatchcase(name, pattern)}
    assert matched == set(chosen) and len(patterns) <= len(chosen)


def test_a_branch_that_is_never_called_takes_one_pattern():
    layers = ['body.a', 'head.a', *(f'aux.{index}.conv' for index in range(40))]
    with pytest.raises(ValueError) as error:
        check_reached([*layers[2:], 'head.a'], layers)
    message = str(error.value)
    assert message.startswith('41 layer(s) were never reached')
    assert "[dict(match='aux.*', skip=True), dict(match='head.a', skip=True)]" in message
    first, second = message.split('\n')
    assert 'aux.29.conv and 11 more' in second and 'aux.5.conv' not in first
    check_reached([], layers)
