"""mmbitsplit quantize --budget: really killed it goes on; other budgets measure nothing anew."""

import json
import signal
import time

import pytest
import torch

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/classifier_digits_w4a8.py'
SETTINGS = ('--cfg-options', 'quantization.method.type=RoundToNearest',
            'quantization.calibration.num_images=8', 'quantization.calibration.rows_per_layer=256',
            'quantization.calibration.batch_size=2', 'quantization.budget.widths=[2,4,8]',
            'quantization.budget.sensitivity=error', 'quantization.budget.evaluations=2',
            'test_dataloader.dataset.indices=64')
FLOAT = 'evaluating the float model'


def arguments(work_dir, budget, *more):
    return ['tools/quantize.py', CONFIG, '--work-dir', str(work_dir), '--budget', budget,
            *more, *SETTINGS]


def read(work_dir, name):
    return json.loads((work_dir / name).read_text())


def measured(work_dir):
    """Files of layers that were solved at all widths, with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns
            for path in (work_dir / 'journal/widths').glob('*.widths')}


@pytest.fixture(scope='module')
def whole(run_tool, tmp_path_factory):
    """Work directory of a run that nothing interrupts."""
    work_dir = tmp_path_factory.mktemp('whole')
    done = run_tool(*arguments(work_dir, '3'))
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


@pytest.mark.parametrize('where', ['measuring', 'trying'])
def test_killed_it_comes_to_the_same_plan(where, whole, tool_server, run_tool, tmp_path):
    widths, plans = tmp_path / 'run/journal/widths', tmp_path / 'run/journal/plans'
    with tool_server.running(arguments(tmp_path / 'run', '3'), tmp_path / 'log') as run:
        while not ((widths / '0003.widths').exists() if where == 'measuring' else
                   any(plans.glob('*/0003.layer'))):
            assert run.poll() is None, run.output()[-3000:]
            time.sleep(0.005)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    kept = measured(tmp_path / 'run')
    done = run_tool(*arguments(tmp_path / 'run', '3', '--resume'))
    assert done.returncode == 0, done.stderr[-3000:]
    assert FLOAT not in done.stdout + done.stderr
    assert kept and kept.items() <= measured(tmp_path / 'run').items()
    for name in ('plan.json', 'budget.json'):
        assert read(tmp_path / 'run', name) == read(whole, name)
    ours, theirs = (torch.load(folder / 'quantized.pth', weights_only=True)['state_dict']
                    for folder in (tmp_path / 'run', whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_budget_takes_over_what_was_measured(whole, run_tool):
    before, table = measured(whole), read(whole, 'budget.json')['table']
    done = run_tool(*arguments(whole, '4', '--resume'))
    output = done.stdout + done.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'another budget than that of the earlier run' in output and FLOAT not in output
    found = read(whole, 'budget.json')
    assert before and measured(whole) == before and found['table'] == table
    plan = found['plans'][found['chosen']]
    assert found['limits'] == {'weight_bits': 4} and 3 < plan['costs']['weight_bits'] <= 4
    assert (whole / 'report.html').is_file()
    # The same once more: that very run is done.
    done = run_tool(*arguments(whole, '4', '--resume'))
    assert 'holds the results of this very run' in done.stdout + done.stderr


@pytest.mark.parametrize('budget', ['1kB', 'bitops=0.01'])
def test_what_cannot_be_kept_is_refused_before_the_float_model_is_evaluated(
        budget, run_tool, tmp_path):
    done = run_tool(*arguments(tmp_path, budget))
    assert done.returncode == 2 and FLOAT not in done.stdout + done.stderr
    assert 'cannot be kept. Possible with these widths: ' in done.stderr
