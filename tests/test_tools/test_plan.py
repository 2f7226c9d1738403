"""mmbitsplit plan on the demo classifier: plans of several budgets from one measurement."""

import json

import pytest

from mmbitsplit.structures import read_plan

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/classifier_digits_w4a8.py'
SETTINGS = ('--widths', 2, 4, 8, '--images', 8, '--cfg-options',
            'quantization.method.type=RoundToNearest',
            'quantization.calibration.rows_per_layer=512')


@pytest.fixture(scope='module')
def plan(run_tool, tmp_path_factory):
    """Runs the tool for some budgets in one work directory."""
    work_dir = tmp_path_factory.mktemp('plans')

    def run(*budgets, options=()):
        done = run_tool('tools/analysis_tools/plan.py', CONFIG, '--work-dir', work_dir, *options,
                        '--budgets', *budgets, *SETTINGS)
        return work_dir, done
    return run


@pytest.fixture(scope='module')
def planned(plan):
    work_dir, done = plan('3', '300kB,bitops=0.5')
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir, done, json.loads((work_dir / 'plans.json').read_text())


def test_each_budget_has_a_plan_that_keeps_it(planned):
    work_dir, done, found = planned
    three, both, *uniform = found['plans']
    assert three['costs']['weight_bits'] <= 3
    assert both['costs']['bytes'] <= 300_000 and both['costs']['bitops'] <= 0.5
    assert {'uniform W2', 'uniform W8'} <= {one['name'] for one in found['plans']}
    narrowest = next(one for one in found['plans'] if one['name'] == 'uniform W2')
    assert three['whole'] < narrowest['whole']
    for one in (three, both):
        rows = read_plan(work_dir / one['file']).rows
        assert {name: f'W{row.weight_bits}' for name, row in rows.items()} == one['widths']
        assert one['file'] in done.stdout and one['file'] in (work_dir / 'plans.md').read_text()
    assert rows['backbone.conv1'].weight_bits == 8  # the rule of first layers holds
    assert len(found['front']) > 5 and (work_dir / 'plans.html').is_file()


def test_other_budgets_need_no_other_measurement(planned, plan):
    work_dir, _, found = planned
    _, done = plan('3', '5', options=['--resume'])
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((work_dir / 'plans.json').read_text())
    assert again['table'] == found['table'] and again['plans'][0] == found['plans'][0]
    assert again['plans'][1]['costs']['weight_bits'] > 3
    _, refused = plan('3', '1kB', options=['--resume'])
    assert refused.returncode == 2
    assert 'bytes <= 1000 cannot be kept. Possible with these widths: bytes from' in refused.stderr


@pytest.mark.parametrize(('budget', 'told'), [
    ('bitop=0.2', "did you mean 'bitops'"), ('9', "--budgets '9': weight_bits=9.0"),
    ('latency=0.5', 'latency=0.5 needs latency_table')])
def test_a_budget_that_cannot_be_is_refused_before_anything_runs(plan, budget, told):
    _, done = plan(budget)
    assert done.returncode == 2 and told in done.stderr
