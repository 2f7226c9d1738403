"""Names of methods on the benchmarks' command lines."""

import argparse
from typing import get_args, get_type_hints

import pytest

from benchmarks.method_names import (
    MODES,
    PLACEMENTS,
    add_method_arguments,
    chosen_methods,
    method_request,
    own_options,
)
from mmbitsplit.calibration import METHODS
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


def test_the_modes_and_placements_are_those_of_a_request():
    hints = get_type_hints(ActivationSpec)
    assert (set(get_args(hints['mode'])), set(get_args(hints['placement']))) == (
        set(MODES), set(PLACEMENTS))
