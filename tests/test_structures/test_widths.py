"""Widths and budgets: read back as written, refused by name, and part of a request."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mmbitsplit.structures import BudgetSpec, QuantSpec, Widths, WidthTable
from mmbitsplit.structures.widths import read_bytes, read_limits

BITS = some.integers(2, 8)
WIDTHS = some.builds(Widths, BITS, some.none() | BITS)
TABLES = some.builds(WidthTable, some.dictionaries(some.text(max_size=8), some.dictionaries(
    WIDTHS, some.floats(allow_nan=False, allow_infinity=False), min_size=1), max_size=4))


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_a_table_is_the_same_after_json(table):
    assert WidthTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize('text', ['W9', 'W4A1', '4', 'W4A', 'A8', 'W4A8 '])
def test_other_widths_are_refused_with_their_layer(text):
    with pytest.raises(ValueError, match="layer 'a.b': Widths .*2 to 8"):
        WidthTable.from_json({'a.b': {text: 1.0}})


def test_a_sum_takes_layers_with_one_choice_as_they_are():
    table = WidthTable({'a': {Widths(2): 1.0, Widths(8): 4.0}, 'last': {Widths(8, 8): 16.0}})
    assert table.sum({'a': Widths(8), 'elsewhere': Widths(3)}) == 20
    for plan in ({}, {'a': Widths(3)}):
        with pytest.raises(ValueError, match="'a'.*W2, W8"):
            table.sum(plan)


def test_a_budget_is_part_of_a_request_and_survives_json():
    request = QuantSpec.from_dict({'budget': {
        'weight_bits': 4.5, 'bytes': '12MB', 'widths': [8, 2, 4], 'activation_widths': [8, 4]}})
    budget = request.budget
    assert budget.limits == {'weight_bits': 4.5, 'bytes': 12_000_000}
    assert budget.widths == (2, 4, 8)
    assert QuantSpec.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert 'budget' not in QuantSpec().to_dict()  # as journals of before have it


def test_choices_are_all_pairs_or_tied_ones():
    assert BudgetSpec(4.0, widths=(4, 2), activation_widths=(8, 4)).choices() == (
        Widths(2, 4), Widths(2, 8), Widths(4, 4), Widths(4, 8))
    tied = BudgetSpec(4.0, widths=(4, 2), activation_widths='tied')
    assert tied.choices() == (Widths(2, 2), Widths(4, 4))
    assert tied.choices(input_is_chosen=False) == BudgetSpec(4.0, widths=(2, 4)).choices() == (
        Widths(2), Widths(4))


@pytest.mark.parametrize(('budget', 'told'), [
    ({'weights_bits': 4}, "did you mean 'weight_bits'"),
    ({}, 'no limit.*weight_bits, bytes, bitops, latency, or max_drop'),
    ({'weight_bits': 9}, 'weight_bits=9 .*2 to 8'),
    ({'weight_bits': 4, 'widths': [1, 2]}, 'widths=.*2 to 8'),
    ({'weight_bits': 4, 'widths': []}, 'widths=.*one or several'),
    ({'weight_bits': 4, 'widths': [4, 4]}, 'each once'),
    ({'weight_bits': 4, 'activation_widths': [4, 9]}, 'activation_widths=.*2 to 8'),
    ({'weight_bits': 4, 'activation_widths': 'tide'}, "activation_widths='tide'.*'tied'"),
    ({'bytes': '12MiBs'}, "unit 'MiBs' is not known; did you mean 'MiB'"),
    ({'bytes': '12'}, 'no unit; allowed are B, kB'),
    ({'bytes': 'small'}, 'no size'), ({'bytes': 0}, 'bytes=0 .*above 0'),
    ({'latency': 0.5}, 'latency=0.5 needs latency_table'),
    ({'weight_bits': 4, 'sensitivity': 'mesured'}, "did you mean 'measured'"),
    ({'weight_bits': 4, 'method': {'init': 'mse'}}, "not a dict with a 'type'"),
], ids=str)
def test_what_no_budget_can_be_is_named(budget, told):
    with pytest.raises(ValueError, match=f'quantization.budget.*{told}'):
        QuantSpec.from_dict({'budget': budget})


def test_a_metric_target_is_a_budget_and_a_plan_beside_one_is_refused():
    assert BudgetSpec(max_drop=0.5).limits == {}
    with pytest.raises(ValueError, match='budget is not supported together with plan'):
        QuantSpec.from_dict({'budget': {'weight_bits': 4}, 'plan': {'layers': []}})


def test_limits_are_read_as_a_command_line_has_them():
    assert read_limits(['4.5', '12MB', 'bitops=0.2', 'latency=.6']) == {
        'weight_bits': 4.5, 'bytes': 12e6, 'bitops': 0.2, 'latency': 0.6}
    assert read_limits(['4.5bits']) == read_limits(['4.5 bits']) == {'weight_bits': 4.5}
    assert read_limits(['bytes=800kB']) == read_limits(['bytes=800000']) == {'bytes': 800_000}
    assert read_bytes('1.5 mib') == 3 << 19
    for texts, told in ((['bitop=0.2'], "did you mean 'bitops'"), (['4', '5'], 'given twice'),
                        (['bitops=few'], "'few' is no number"), (['12Mb2'], 'no size')):
        with pytest.raises(ValueError, match=told):
            read_limits(texts)
