"""Budgets as a command line has them."""

import argparse

import pytest
from mmengine.config import Config

from mmbitsplit.cli.budget_arguments import add_budget_arguments, apply_budget, budget_text


def budget_of(*words, budget=None):
    parser = argparse.ArgumentParser()
    add_budget_arguments(parser)
    cfg = Config({'quantization': {} if budget is None else {'budget': budget}})
    apply_budget(cfg, parser.parse_args(words))
    return cfg.quantization.get('budget')


def test_limits_replace_those_of_the_config_and_leave_the_rest():
    given = {'bitops': 0.2, 'widths': [2, 4]}
    assert budget_of(budget=given) == given
    assert budget_of('--budget', '4.5', budget=given) == {'weight_bits': 4.5, 'widths': [2, 4]}
    assert budget_of('--budget', '12MB', '--budget', 'latency=0.6', '--latency-table', 't.csv') == {
        'bytes': 12_000_000, 'latency': 0.6, 'latency_table': 't.csv'}
    assert budget_of('--max-drop', '0.5', '--evaluations', '4', budget=given) == {
        **given, 'max_drop': 0.5, 'evaluations': 4}
    assert budget_of() is None


@pytest.mark.parametrize(('words', 'told'), [
    (['--evaluations', '4'], '--evaluations is for a search.*--budget'),
    (['--latency-table', 't.csv'], '--latency-table is for'),
    (['--budget', 'latncy=2'], "did you mean 'latency'"),
    (['--budget', '12MX'], "'MX' is not known")])
def test_what_cannot_be_read_is_named(words, told):
    with pytest.raises(ValueError, match=told):
        budget_of(*words)


def test_the_text_says_what_was_tried_and_how_far_the_sum_was():
    def plan(name, loss, drop=None):
        return dict(name=name, costs={'weight_bits': 4.0, 'bytes': 1000}, predicted=0.5, whole=0.6,
                    trial=dict(loss=loss, payload=1000, drop=drop))
    budget = dict(limits={'weight_bits': 4.0}, loss='kl', sensitivity='measured', max_drop=None,
                  plans=[plan('mixed', 0.1), plan('uniform W4', 0.2)], chosen=0)
    text = budget_text(budget)
    assert 'Loss (kl) when calibrated: mixed 0.1, uniform W4 0.2.' in text
    assert 'add up to 0.5; with all layers at their widths at once it was 0.6' in text
    assert 'add up' not in budget_text({**budget, 'sensitivity': 'error'})
    target = budget_text({**budget, 'limits': {}, 'max_drop': 0.5,
                          'plans': [plan('mixed', 1, 0.4)]})
    assert 'evaluation 1: mixed, 4.00 bits, 1.0 kB: drop 0.40' in target
