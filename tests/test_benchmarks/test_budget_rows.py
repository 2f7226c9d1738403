"""Rows of the benchmarks whose widths are chosen."""

import argparse

import pytest

from benchmarks.budget_rows import add_budget_arguments, budget_options, plan_taken, width_rows
from mmbitsplit.calibration import read_request


def rows(bits, *arguments):
    parser = argparse.ArgumentParser()
    add_budget_arguments(parser)
    return width_rows(parser.parse_args(arguments), bits)


def test_budgets_come_after_uniform_rows_once_for_each_width_of_the_inputs():
    found = rows(['w8a8', 'W4A8', 'w4a4'], '--budget', '4.5', '3', '--budget-options',
                 'evaluations=2')
    assert [row.name for row in found] == [
        'w8a8', 'W4A8', 'w4a4', 'mean 4.5 bits, A8', 'mean 4.5 bits, A4', 'mean 3 bits, A8',
        'mean 3 bits, A4']
    assert [(row.weight_bits, row.activation_bits) for row in found[:3]] == [(8, 8), (4, 8), (4, 4)]
    assert found[0].request == {}
    assert found[4].activation_bits == 4
    assert found[4].request == {'budget': {'weight_bits': 4.5, 'evaluations': 2}}
    assert read_request(found[4].request).budget.evaluations == 2


@pytest.mark.parametrize(('text', 'name'), [('4,8', 'of 4, 8'), ('4', 'of 4'), ('tied', 'tied')])
def test_inputs_that_are_chosen_make_one_row_of_a_budget(text, name):
    found = rows(['w8a8', 'w4a4'], '--budget', '4', '--budget-options', f'activation_widths={text}',
                 'widths=4,8')
    assert [row.name for row in found] == ['w8a8', 'w4a4', f'mean 4 bits, A {name}']
    budget = read_request(found[-1].request).budget
    assert budget.widths == (4, 8)
    assert budget.activation_widths in ((4, 8), (4,), 'tied')


def test_options_are_read_as_what_they_are():
    assert budget_options(['widths=2,3', 'sensitivity=fisher', 'evaluations=4']) == {
        'widths': [2, 3], 'sensitivity': 'fisher', 'evaluations': 4}


@pytest.mark.parametrize(('bits', 'options', 'message'), [
    (['w4'], [], "'w4' is not known; write"), (['w4a8'], ['widths=2;3'], 'write widths as 2,3,4,8'),
    (['w4a8'], ['evaluations'], 'has no =; write such as evaluations=4'),
    (['w4a8'], ['sensitivty=fisher'], "did you mean 'sensitivity'"),
    (['w4a8'], ['widths=2,9'], 'widths=')])
def test_what_is_refused(bits, options, message):
    with pytest.raises(ValueError, match=message):
        rows(bits, '--budget', '4', *(['--budget-options', *options] if options else []))


def test_the_plan_that_was_taken_is_said():
    plan = {'name': 'mixed', 'costs': {'weight_bits': 3.997}, 'trial': {'payload': 12345}}
    assert plan_taken({'plans': [{}, plan], 'chosen': 1}) == 'mixed of 2: 4.00 bits, 12.3 kB'
