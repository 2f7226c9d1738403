"""Rows of the ablation: each adds one stage to the row before it."""

from argparse import Namespace

import pytest

from benchmarks.calibtip import rows


def arguments(**changed):
    return Namespace(**{'budget': [], 'stages': ['norms', 'biases'], 'norm_options': [],
                        'bias_options': ['steps=5'], 'apart': False, **changed})


@pytest.mark.parametrize('stages', [[], ['norms'], ['norms', 'biases'], ['biases', 'norms']])
def test_each_row_adds_one_stage_at_the_widths_of_its_budget(stages):
    by_budget = {}
    for _, budget, found in rows(arguments(budget=[3.0, 2.5], stages=stages)):
        by_budget.setdefault(budget, []).append(found)
    alone = by_budget.pop(None)
    assert alone == [[]] and list(by_budget) == [3.0, 2.5]
    for row in by_budget.values():
        assert [len(found) for found in row] == list(range(len(stages) + 1))
        assert all(more[:-1] == less for less, more in zip(row, row[1:]))
        kinds = {'norms': 'NormReestimation', 'biases': 'BiasTuning'}
        assert [stage['type'] for stage in row[-1]] == [kinds[name] for name in stages]


def test_options_reach_their_stage_and_names_say_what_is_added():
    found = {name: stages for name, _, stages in rows(arguments(apart=True))}
    assert list(found) == ['alone', '+ norms', '+ norms + biases', '+ biases']
    assert found['+ biases'] == [{'type': 'BiasTuning', 'steps': 5}]
