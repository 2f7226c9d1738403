"""Names of methods on the benchmarks' command lines."""

import argparse
from typing import get_args, get_type_hints

import pytest
import torch

from benchmarks.method_names import (
    MODES,
    PLACEMENTS,
    add_method_arguments,
    at_each,
    chosen_methods,
    method_request,
    own_options,
)
from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import METHODS
from mmbitsplit.models import bits_of
from mmbitsplit.structures import ActivationSpec


def names(*arguments):
    parser = argparse.ArgumentParser()
    add_method_arguments(parser, ['default'])
    return chosen_methods(parser.parse_args(arguments))


@pytest.mark.parametrize(('name', 'method', 'activation'), [
    ('default', {'type': 'BitSplit'}, {}), ('BitSplit', {'type': 'BitSplit'}, {}),
    ('rounding:per_channel', {'type': 'MSE'}, {'mode': 'per_channel'}),
    ('default:deploy', {'type': 'BitSplit'}, {'placement': 'deploy'}),
    ('adaround@70', {'type': 'AdaRound', 'iterations': 70}, {}),
    ('brecq@400:brecq', {'type': 'BRECQ', 'iterations': 400, 'input_iterations': 100},
     {'placement': 'brecq'})])
def test_what_a_name_stands_for(name, method, activation):
    assert method_request(name) == (method, activation)


@pytest.mark.parametrize(('name', 'message'), [
    ('adarond', "'adarond' is not known; did you mean 'AdaRound'"),
    ('AdaRound:qdorp', "did you mean 'qdrop'"), ('MSE@20', 'a method that learns'),
    ('AdaRound@no', 'a number from 1'), ('AdaRound@0', 'a number from 1')])
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        method_request(name)


def test_steps_are_set_where_there_are_any_and_said_in_the_name():
    assert names() == ['default']
    assert names('--iterations', '30', '--methods', 'rounding', 'AdaRound:ecaq', 'AdaRound@5') == [
        'rounding', 'AdaRound@30:ecaq', 'AdaRound@5']
    assert names('--methods', 'all') == sorted(METHODS)


def test_options_reach_the_methods_that_have_them():
    texts = ['batch_size=8', 'learning_rate=1e-2', 'loss=scale_free']
    assert own_options('AdaRound', texts) == {
        'batch_size': 8, 'learning_rate': 0.01, 'loss': 'scale_free'}
    assert own_options('MSE', texts) == {}
    assert own_options('PTMQ', ['widths=3,4', 'groups=3/4/6,8']) == {
        'widths': [3, 4], 'groups': [[3], [4], [6, 8]]}


def test_a_model_of_several_widths_is_switched_through_those_asked_for():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8),
                                torch.nn.ReLU(), torch.nn.Linear(8, 8))
    quantize_model(model, [torch.randn(16, 8)], dict(
        method=dict(type='NestedBitSplit', widths=[3, 8], activation_widths=[4, 8])))
    seen = {width: bits_of(model)['2'] for width in at_each(model, ['3/8', '8/4'])}
    assert {width: (bits.weight, bits.input) for width, bits in seen.items()} == {
        'W3A8': (3, 8), 'W8A4': (8, 4)}
    assert list(at_each(model, [])) == [''] and bits_of(model)['2'] == seen['W8A4']


def test_the_modes_and_placements_are_those_of_a_request():
    hints = get_type_hints(ActivationSpec)
    assert (set(get_args(hints['mode'])), set(get_args(hints['placement']))) == (
        set(MODES), set(PLACEMENTS))
