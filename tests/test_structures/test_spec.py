"""Options: what is refused, what the message names, and that nothing can be changed later."""

import dataclasses
import json

import pytest

from mmbitsplit.structures import (
    ActivationSpec,
    CalibrationSpec,
    FirstLastSpec,
    OverrideSpec,
    QuantSpec,
    WeightSpec,
    from_mapping,
    merge,
)


@pytest.mark.parametrize('bits', range(2, 9))
def test_bits_from_two_to_eight_are_taken(bits):
    spec = QuantSpec.from_dict({
        'weight': {'num_bits': bits}, 'activation': {'num_bits': bits},
        'first_last': {'weight_bits': bits, 'activation_bits': bits}})
    assert spec.weight.num_bits == spec.activation.num_bits == bits
    assert spec.first_last == FirstLastSpec(bits, bits)


@pytest.mark.parametrize(('part', 'key'), [
    ('weight', 'num_bits'), ('activation', 'num_bits'), ('activation', 'output_bits'),
    ('first_last', 'weight_bits'),
    ('first_last', 'activation_bits')])
def test_other_bits_are_refused_with_name_value_and_range(part, key):
    with pytest.raises(ValueError) as caught:
        QuantSpec.from_dict({part: {key: 9}})
    message = str(caught.value)
    assert f'quantization.{part}' in message
    assert f'{key}=9 ' in message
    assert '2 to 8' in message


def test_bits_that_may_be_left_out():
    assert ActivationSpec(num_bits=None).num_bits is FirstLastSpec(None, None).weight_bits is None


@pytest.mark.parametrize('changes', [{'num_bits': None}, {'mode': 'per_channel'}], ids=str)
def test_quantized_outputs_need_inputs_that_integers_are_made_of(changes):
    with pytest.raises(ValueError, match="quantization.*placement='deploy'.*placement='inputs'"):
        QuantSpec.from_dict({'activation': {'placement': 'deploy', **changes}})
    QuantSpec.from_dict({'activation': {'placement': 'inputs', **changes}})


def test_an_override_can_leave_inputs_float_where_outputs_are_quantized():
    QuantSpec.from_dict({'activation': {'placement': 'deploy'}, 'overrides': [
        {'match': 'a', 'activation': {'num_bits': None}}]})


@pytest.mark.parametrize(('mapping', 'key', 'where', 'hint'), [
    ({'weigth': {}}, 'weigth', 'quantization', 'weight'),
    ({'weight': {'num_bit': 4}}, 'num_bit', 'quantization.weight', 'num_bits'),
    ({'activation': {'symetry': 'auto'}}, 'symetry', 'quantization.activation', 'symmetry'),
    ({'first_last': {'weights_bits': 8}}, 'weights_bits', 'quantization.first_last',
     'weight_bits'),
    ({'calibration': {'num_image': 4}}, 'num_image', 'quantization.calibration', 'num_images'),
    ({'overrides': [{'match': 'a'}, {'match': 'b', 'skp': True}]}, 'skp',
     'quantization.overrides[1]', 'skip'),
    ({'overrides': [{'match': 'a', 'weight': {'bits': 4}}]}, 'bits',
     'quantization.overrides[0].weight', 'num_bits'),
    ({'overrides': [{'match': 'a', 'activation': {'modes': 'ecaq'}}]}, 'modes',
     'quantization.overrides[0].activation', 'mode'),
])
def test_unknown_key_names_itself_its_place_and_the_nearest(mapping, key, where, hint):
    with pytest.raises(ValueError) as caught:
        QuantSpec.from_dict(mapping)
    message = str(caught.value)
    assert f"Unknown key '{key}' in {where}:" in message
    assert f"did you mean '{hint}'" in message


@pytest.mark.parametrize(('mapping', 'value', 'hint'), [
    ({'weight': {'scale_search': 'mes'}}, 'mes', 'mse'),
    ({'activation': {'mode': 'per_chanel'}}, 'per_chanel', 'per_channel'),
    ({'activation': {'symmetry': 'assymetric'}}, 'assymetric', 'asymmetric'),
    ({'activation': {'scale_search': 'min_max'}}, 'min_max', 'minmax'),
    ({'overrides': [{'match': 'a', 'activation': {'mode': 'ECAQ'}}]}, 'ECAQ', 'ecaq'),
    ({'activation': {'placement': 'deployed'}}, 'deployed', 'deploy'),
])
def test_unknown_choice_names_value_and_allowed_ones(mapping, value, hint):
    with pytest.raises(ValueError) as caught:
        QuantSpec.from_dict(mapping)
    assert repr(value) in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize('mapping', [
    {'weight': 4}, {'weight': None}, {'method': 'BitSplit'}, {'method': {'init': 'mse'}},
    {'overrides': {'match': 'a'}}, {'overrides': ['a']}, {'overrides': [{}]},
    {'overrides': [{'match': 3}]},
    {'overrides': [{'match': 'a', 'weight': {'num_bits': 9}}]},
], ids=str)
def test_what_has_not_the_shape_of_a_request_is_refused(mapping):
    part = next(iter(mapping))
    with pytest.raises(ValueError, match=part):
        QuantSpec.from_dict(mapping)


def test_defaults_are_w4a8_and_an_empty_dict_gives_them():
    spec = QuantSpec.from_dict({})
    assert spec == QuantSpec()
    assert (spec.weight.num_bits, spec.activation.num_bits) == (4, 8)
    assert spec.scope == 'all'
    assert spec.overrides == ()


def test_scope_and_overrides_are_read_in_order():
    spec = QuantSpec.from_dict({'scope': 'backbone+neck', 'overrides': [
        {'match': 'backbone.*', 'weight': {'num_bits': 3}}, {'match': 'neck.0', 'skip': True}]})
    assert spec.scope == 'backbone+neck'
    assert spec.overrides == (OverrideSpec('backbone.*', weight={'num_bits': 3}),
                              OverrideSpec('neck.0', skip=True))


def test_dict_round_trip_through_json():
    spec = QuantSpec.from_dict({
        'weight': {'num_bits': 3}, 'activation': {'num_bits': None, 'strength': 0.5},
        'method': {'type': 'BitSplit', 'init': 'mse'}, 'calibration': {'num_images': 7},
        'overrides': [{'match': 'a', 'activation': {'mode': 'per_tensor'}}], 'scope': 'neck'})
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_reading_leaves_the_mapping_alone():
    mapping = {'weight': {'num_bits': 3}, 'overrides': [{'match': 'a'}]}
    QuantSpec.from_dict(mapping)
    assert mapping == {'weight': {'num_bits': 3}, 'overrides': [{'match': 'a'}]}


@pytest.mark.parametrize('spec', [
    WeightSpec(), ActivationSpec(), FirstLastSpec(), CalibrationSpec(), OverrideSpec('a'),
    QuantSpec()], ids=lambda spec: type(spec).__name__)
def test_specs_are_frozen(spec):
    for field in dataclasses.fields(spec):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, field.name, getattr(spec, field.name))


def test_merge_changes_only_what_is_named_and_checks_it():
    merged = merge(ActivationSpec(num_bits=8, mode='ecaq'), {'num_bits': 4}, 'here')
    assert merged == ActivationSpec(num_bits=4, mode='ecaq')
    with pytest.raises(ValueError, match='here.*num_bits=1 '):
        merge(ActivationSpec(), {'num_bits': 1}, 'here')


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match='there lacks .*match'):
        from_mapping(OverrideSpec, {'skip': True}, 'there')
