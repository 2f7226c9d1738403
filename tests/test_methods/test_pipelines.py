"""Whole procedures by name: what they fill, what they refuse to fill over."""

import pytest

from mmbitsplit.cli.quantize import procedure
from mmbitsplit.methods import PIPELINES, check_pipeline, read_request
from mmbitsplit.methods.tuning import build_stages
from mmbitsplit.structures import QuantSpec

LIGHT = [{'type': 'NormReestimation'}]


def test_a_name_gives_the_method_with_its_scales_and_what_comes_after_it():
    spec = read_request(dict(pipeline='CalibTIPLight', weight=dict(num_bits=3),
                             method=dict(type='BitSplit')))  # as configs inherit it
    assert spec.method == {'type': 'RoundToNearest'} and list(spec.tuning) == LIGHT
    assert (spec.weight.num_bits, spec.weight.scale_search) == (3, 'minmax')
    assert spec.activation.symmetry == 'asymmetric'
    assert read_request(spec.to_dict()) == spec  # as a dumped config is read again
    check_pipeline(spec)
    assert 'pipeline' not in read_request({}).to_dict()  # as journals of before have it


def test_parts_are_replaced_inside():
    spec = read_request(dict(pipeline=dict(
        type='CalibTIPAdvanced', method=dict(iterations=7), tuning=dict(type='BiasTuning'))))
    assert spec.method == {'type': 'AdaQuant', 'flavour': 'parallel', 'iterations': 7}
    assert [type(stage).__name__ for stage in build_stages(spec.tuning)] == ['BiasTuning']
    other = read_request(dict(pipeline=dict(type='CalibTIPLight', method=dict(type='MSE'))))
    assert other.method == {'type': 'MSE'} and list(other.tuning) == LIGHT


@pytest.mark.parametrize('name', PIPELINES)
def test_all_can_be_read(name):
    assert build_stages(read_request(dict(pipeline=name)).tuning)


@pytest.mark.parametrize('request_, words', [
    (dict(pipeline='CalibTipLight'), r"pipeline='CalibTipLight'.*did you mean 'CalibTIPLight'"),
    (dict(pipeline=dict(method=dict(type='MSE'))), r"neither a name nor a dict with a 'type'"),
    (dict(pipeline=7), 'neither a name nor a dict'),
    (dict(pipeline=dict(type='CalibTIPLight', tunning=[])), "Unknown key 'tunning'.*'tuning'"),
    (dict(pipeline='CalibTIPLight', method=dict(type='QDrop')),
     r"quantization.method=.*QDrop.*pipeline=dict\(type='CalibTIPLight', method="),
    (dict(pipeline='CalibTIPLight', tuning=dict(type='OutputTuning')), 'quantization.tuning='),
    (dict(pipeline='CalibTIPLight', tuning=[]), 'quantization.tuning='),
    (dict(method=dict(type='CalibTIPLight')), "write quantization.pipeline='CalibTIPLight'"),
])
def test_what_does_not_fit_is_refused(request_, words):
    with pytest.raises(ValueError, match=words):
        read_request(request_)


def test_a_request_made_by_hand_is_not_taken_for_the_pipeline():
    with pytest.raises(ValueError, match='read_request'):
        check_pipeline(QuantSpec(pipeline='CalibTIPLight'))


def test_the_command_line_replaces_what_a_config_writes_down():
    changes = procedure('MSE', 'CalibTIPAdvanced')
    changes = {name.removeprefix('quantization.'): value for name, value in changes.items()}
    for part in ('method', 'pipeline'):
        assert changes[part].pop('_delete_')
    spec = read_request(changes)
    assert spec.method == {'type': 'MSE'} and len(spec.tuning) == 2
    assert procedure(None, None) == {}
    assert procedure('MSE', None) == {'quantization.method': {'type': 'MSE', '_delete_': True}}
