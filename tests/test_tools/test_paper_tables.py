"""tools/paper_tables.py on the demo classifier; store_results and update_tables after it."""

import importlib
import json
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FEW = ('quantization.calibration.num_images=32', 'quantization.calibration.rows_per_layer=256')


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process, in the project's folder."""
    def run(name, *args):
        module = importlib.import_module(f'mmbitsplit.cli.{name}')
        code = module.main([str(arg) for arg in args])
        return code, capsys.readouterr()

    monkeypatch.chdir(PROJECT)
    return run


def test_a_grid_runs_resumes_and_gives_what_quantize_gives(run_tool, tmp_path):
    grid = ('tools/paper_tables.py', '--table', 3, '--model', 'classifier', '--bits', 3,
            '--methods', 'tflite', 'bitsplit', '--work-dir', tmp_path / 'paper', '--cfg-options',
            *FEW)
    done = run_tool(*grid)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '[2/2] classifier bitsplit W3A3 seed 0: Top-1' in done.stdout
    again = run_tool(*grid)
    assert again.returncode == 0 and again.stdout.count('taken over') == 2
    for name in ('table3.md', 'table3.csv', 'table3.png', 'float/classifier.json'):
        assert (tmp_path / 'paper' / name).is_file()
    cell = tmp_path / 'paper/table3/classifier/bitsplit_w3a3_s0'
    assert 'solving' in (cell / 'output.log').read_text()
    alone = run_tool('tools/quantize.py', 'configs/demo/classifier_digits_w4a8.py',
                     '--weight-bits', 3, '--activation-bits', 3, '--work-dir', tmp_path / 'alone',
                     '--cfg-options', *FEW)
    assert alone.returncode == 0, alone.stderr[-3000:]
    ours, theirs = (json.loads((folder / 'results.json').read_text())
                    for folder in (cell, tmp_path / 'alone'))
    for key in ('float', 'quantized', 'drop', 'method', 'weight_bits', 'activation_bits'):
        assert ours[key] == theirs[key]
    assert ours['calibration']['image_ids'] == theirs['calibration']['image_ids']
    stored = run_tool('tools/store_results.py', tmp_path / 'paper', '--to', tmp_path / 'runs.json')
    assert stored.returncode == 0 and '2 run(s) stored' in stored.stdout
    runs = json.loads((tmp_path / 'runs.json').read_text())['runs']
    assert [run['cell']['method'] for run in runs] == ['tflite', 'bitsplit']
    assert '--methods bitsplit --bits w3a3 --seeds 0' in runs[1]['command']


@pytest.mark.parametrize('options, message', [
    (['--table', 3, '--methods', 'nope'], "method 'nope' is not known"),
    (['--table', 3, '--model', 'retinnet'], "did you mean 'retinanet'"),
    (['--table', 5, '--model', 'classifier'], 'Table 5 is of detectors'),
    (['--table', 4, '--methods', 'tflite', '--bits', 4], 'is not enough for table 4'),
    (['--table', 3, '--data', 'docs'], 'holds none of the known data sets'),
    (['--table', 3, '--data', 'data/digits', '--model', 'resnet18'], 'is digits, model'),
    (['--table', 5, '--methods', 'tflite', '--scopes', 'neck'], "scope='neck'"),
    (['--table', 3, '--model', 'classifier', '--seeds', -1], 'seed=-1 is not supported'),
])
def test_what_is_refused_is_one_line_and_nothing_is_run(options, message, call, tmp_path):
    code, printed = call('paper_tables', *options, '--work-dir', tmp_path / 'paper')
    assert code == 2 and message in printed.err and printed.err.count('\n') == 1
    assert not (tmp_path / 'paper').exists()


def test_default_models_are_those_at_hand_that_fit():
    from mmbitsplit.cli.paper_tables import choose_models
    from mmbitsplit.report.paper import TABLES

    names = {number: [model.name for model in choose_models(TABLES[number], None, None)]
             for number in (3, 5)}
    assert names == {3: ['classifier', 'retinanet', 'mask_rcnn'], 5: ['retinanet', 'mask_rcnn']}


def test_failed_cells_are_shown_and_the_others_go_on(call, monkeypatch, tmp_path):
    from mmbitsplit.apis import grid

    real = grid.quantize_config

    def fails_once(cfg, **kwargs):
        if cfg.quantization.method.type == 'RoundToNearest':
            raise RuntimeError('it broke')
        return real(cfg, **kwargs)

    monkeypatch.setattr(grid, 'quantize_config', fails_once)
    args = ('--table', 3, '--model', 'classifier', '--bits', 4, '--methods', 'tflite', 'bitsplit',
            '--work-dir', tmp_path, '--cfg-options', *FEW)
    code, printed = call('paper_tables', *args)
    assert code == 1 and 'FAILED: RuntimeError: it broke' in printed.out
    assert '## Failed' in printed.out and '[2/2] classifier bitsplit W4A4' in printed.out
    code, printed = call('store_results', tmp_path, '--to', tmp_path / 'x.json')
    assert code == 2 and '1 of the cells failed' in printed.err
    assert not (tmp_path / 'x.json').exists()


def test_store_needs_results_and_a_command(call, tmp_path):
    code, printed = call('store_results', tmp_path, '--to', tmp_path / 'x.json')
    assert code == 2 and 'no results.json below' in printed.err
    (tmp_path / 'results.json').write_text('{}')
    code, printed = call('store_results', tmp_path, '--to', tmp_path / 'x.json')
    assert code == 2 and 'does not know the command' in printed.err


def test_update_writes_what_check_finds(call, tmp_path, monkeypatch):
    from mmbitsplit.report import model_zoo

    monkeypatch.setattr(model_zoo, 'FAMILIES', {})
    (tmp_path / 'runs.json').write_text('{"runs": []}')
    page = tmp_path / 'README.md'
    page.write_text('<!-- results: runs from=runs.json -->\nold\n<!-- end results -->\n')
    code, printed = call('update_tables', '--root', tmp_path, '--check')
    assert code == 1 and 'README.md' in printed.out and 'old' in page.read_text()
    assert call('update_tables', '--root', tmp_path)[0] == 0 and 'old' not in page.read_text()
    code, printed = call('update_tables', '--root', tmp_path, '--check')
    assert code == 0 and 'up to date' in printed.out
    page.write_text('<!-- results: runs from=none.json -->\n<!-- end results -->\n')
    code, printed = call('update_tables', '--root', tmp_path)
    assert code == 2 and 'README.md' in printed.err and 'none.json' in printed.err
