"""A plan is plain JSON, a line a layer; what is wrong with one is said by file, layer and key."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mmbitsplit.structures import (
    ActivationSpec,
    BitPlan,
    FloatRemainder,
    LayerPlan,
    OutputPlan,
    PlanRow,
    PlanSpec,
    QuantSpec,
    WeightSpec,
    plan_text,
    plan_value,
    read_plan,
)

BITS = some.integers(2, 8)
NAMES = some.text(min_size=1, max_size=12)
ACTIVATIONS = some.builds(
    ActivationSpec, num_bits=some.none() | BITS,
    mode=some.sampled_from(['per_tensor', 'per_channel', 'ecaq']),
    symmetry=some.sampled_from(['auto', 'unsigned']),
    scale_search=some.sampled_from(['auto', 'mse', 'minmax']),
    strength=some.just('auto') | some.floats(0, 1), norm=some.floats(1, 8),
    bit_allocation=some.sampled_from(['uniform', 'aciq']))
LAYERS = some.builds(
    LayerPlan, NAMES, some.builds(WeightSpec, BITS, some.sampled_from(['mse', 'minmax'])),
    ACTIVATIONS, some.sampled_from(['first', 'inner', 'first+last']),
    some.none() | some.builds(OutputPlan, BITS, some.booleans()))
PLANS = some.builds(BitPlan, some.lists(LAYERS, max_size=6, unique_by=lambda row: row.name).map(
    tuple), some.just((FloatRemainder('kept float', 'Conv2d', 'asked for', 1, 0.1, True),
                       FloatRemainder('norm', 'BatchNorm2d', 'cannot', 1, 0.1))))


@settings(deadline=None, max_examples=50)
@given(PLANS)
def test_text_and_back_says_all_of_every_layer(plan):
    text = plan_text(plan_value(plan))
    assert json.loads(text) == plan_value(plan)
    spec = read_plan(json.loads(text))
    assert spec == read_plan(plan) == read_plan(spec)
    assert [*spec.rows] == [*(layer.name for layer in plan.layers), 'kept float']
    assert spec.rows['kept float'].weight_bits is None
    for layer in plan.layers:
        row, activation = spec.rows[layer.name], layer.activation
        assert row.role == layer.role
        assert (row.weight_bits, row.input_bits, row.output_bits) == (
            layer.weight.num_bits, activation.num_bits, layer.output and layer.output.num_bits)
        assert WeightSpec(row.weight_bits, **row.weight) == layer.weight
        assert ActivationSpec(row.input_bits, **row.activation) == activation
    # Nothing of it is lost where the request is stored, in checkpoints and journals.
    request = QuantSpec(plan=spec)
    assert QuantSpec.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@settings(deadline=None, max_examples=50)
@given(PLANS)
def test_people_find_a_line_a_layer_with_widths_below_each_other(plan):
    lines = [line for line in plan_text(plan_value(plan)).split('\n') if line[:4] == 4 * ' ']
    assert len(lines) == len(plan.layers) + 1
    assert len({line.index('"weight_bits":') for line in lines}) == 1


def test_what_a_row_leaves_out_is_as_requested():
    row = read_plan({'layers': [{'name': 'a', 'weight_bits': 3}]}).rows['a']
    assert row == PlanRow('a', 3, 'request', 'request')


@pytest.mark.parametrize(('value', 'message'), [
    ({}, 'plan lacks the key.* layers'), ([], 'plan must be a dict'),
    ({'layer': []}, "'layer' in plan: did you mean 'layers'"),
    ({'layers': {}}, 'plan.layers must be a list'), ({'layers': [3]}, r'plan.layers\[0\] must be'),
    ({'layers': [{'weight_bits': 3}]}, r'plan.layers\[0\] lacks .*name'),
    ({'layers': [{'name': 'a.b', 'weight_bit': 3}]},
     r"'weight_bit' in plan.layers\['a.b'\]: did you mean 'weight_bits'"),
    ({'layers': [{'name': 'a', 'input_bits': 9}]},
     r"plan.layers\['a'\]: input_bits=9 is not supported; .*2 to 8 or None"),
    ({'layers': [{'name': 'a', 'weight': {'num_bits': 3}}]},
     r"plan.layers\['a'\]: Unknown key 'num_bits' in weight.*weight_bits"),
    ({'layers': [], 'activation': {'placement': 'deploy'}}, "Unknown key 'placement'"),
    ({'layers': [{'name': 'a'}, {'name': 'a'}]}, "2 rows of layer 'a'"),
    ({'layers': [], 'format': 2}, 'format=2 of a plan.*newer mmbitsplit')])
def test_what_is_no_plan_is_refused_by_place_and_the_file_by_name(value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_plan(value)
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f'mine.json cannot be read: .*{message}'):
        read_plan(path)


@pytest.mark.parametrize(('text', 'message'), [
    (None, 'there is no such file'), ('{"layers": [', 'Expecting'), ('\xff', 'codec')])
def test_a_file_that_is_no_json_is_one_clear_error(text, message, tmp_path):
    path = tmp_path / 'plan.json'
    if text is not None:
        path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=f'plan.json cannot be read: .*{message}.*work directory'):
        read_plan(str(path))


def test_settings_that_a_request_refuses_name_the_layer():
    plan = read_plan({'layers': [{'name': 'a', 'activation': {'mode': 'per_chanel'}}]})
    with pytest.raises(ValueError, match="plan, layer 'a', activation.*per_channel"):
        QuantSpec(plan=plan)


def test_rows_win_over_what_all_have_in_common():
    plan = PlanSpec((PlanRow('a', activation={'mode': 'ecaq'}), PlanRow('b')),
                    activation={'mode': 'per_tensor', 'norm': 2.0})
    assert plan.rows['a'].activation == {'mode': 'ecaq', 'norm': 2.0}
    assert plan.rows['b'].activation == {'mode': 'per_tensor', 'norm': 2.0}
