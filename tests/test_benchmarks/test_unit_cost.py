"""The cost of learning is told of a whole model from a few of its units."""

import sys

import pytest
import torch
from torch import nn

from benchmarks import unit_cost
from benchmarks.unit_cost import CASES, Cost, choose_units, in_words, request_of, steps_option
from mmbitsplit.calibration import read_request
from mmbitsplit.structures import Unit


def test_units_of_several_layers_are_chosen_evenly():
    units = [Unit(str(number), (str(number),), tuple(map(str, range(layers))))
             for number, layers in enumerate((1, 3, 3, 3, 3, 3, 3, 1))]
    assert [unit.name for unit in choose_units(units, 3)] == ['2', '4', '6']
    assert [unit.name for unit in choose_units(units, 9)] == [unit.name for unit in units]


def test_only_the_layers_of_a_unit_are_quantized():
    spec = read_request(request_of('qdrop:qdrop', '3/4', 7, ['a'], ['a', 'b', 'c']))
    assert [override.match for override in spec.overrides if override.skip] == ['b', 'c']
    assert spec.method == {'type': 'QDrop', 'iterations': 7}
    assert (spec.weight.num_bits, spec.activation.num_bits) == (3, 4)


def test_a_method_without_steps_is_refused():
    assert steps_option('QDrop') == ('iterations', 20000)
    with pytest.raises(ValueError, match="'MSE' learns nothing.*calibration.py"):
        steps_option('MSE')


def test_the_words_are_the_arithmetic():
    """A step at 3 forwards of its images, of 10 ms each: 100 steps of 8 are 24 s, or 24 passes."""
    text = in_words('QDrop', 'net', [Cost('a', 2, 0.002, 0.006, 1.0), Cost('b', 2, 0.001, 0.003,
                                                                           1.0)],
                    whole=0.01, images=100, steps=3600 * 10 // 8, batch_size=8)
    assert '3.0 of its forwards' in text
    assert 'about 0.3 hours here, 1080 float forwards of the calibration images' in text


@pytest.mark.slow
def test_it_runs_on_a_tiny_model(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', [
        'unit_cost.py', '--case', 'tiny', '--units', '1', '--steps', '2', '--images', '8',
        '--json', str(tmp_path / 'cost.json')])
    unit_cost.main()
    assert 'QDrop on tiny' in capsys.readouterr().out and (tmp_path / 'cost.json').is_file()


@pytest.mark.parametrize('name', CASES)
def test_cases_are_models_of_images(name):
    case = CASES[name]
    with torch.device('meta'):
        model = case.build().eval()
        assert isinstance(model, nn.Module)
        model(torch.zeros(1, *case.shape))
