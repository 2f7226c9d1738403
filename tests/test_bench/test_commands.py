"""Commands of the bench: what they refuse, failed cells, what is stored and written."""

import importlib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FEW = ('quantization.calibration.num_images=32', 'quantization.calibration.rows_per_layer=256')


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process, in the project's folder."""
    def run(name, *args):
        module = importlib.import_module(f'bench.commands.{name}')
        code = module.main([str(arg) for arg in args])
        return code, capsys.readouterr()

    monkeypatch.chdir(PROJECT)
    return run


@pytest.mark.parametrize('options, message', [
    (['--table', 3, '--methods', 'nope'], "method 'nope' is not known"),
    (['--table', 3, '--model', 'retinnet'], "did you mean 'retinanet'"),
    (['--table', 5, '--model', 'classifier'], 'Table 5 is of detectors'),
    (['--table', 4, '--methods', 'tflite', '--bits', 4], 'is not enough for table 4'),
    (['--table', 3, '--data', 'docs'], 'holds none of the known data sets'),
    (['--table', 3, '--data', 'data/digits', '--model', 'resnet18'], 'is digits, model'),
    (['--table', 5, '--methods', 'tflite', '--scopes', 'neck'], "scope='neck'"),
    (['--table', 3, '--model', 'classifier', '--seeds', -1], 'seed=-1 is not supported'),
    (['--paper', 'ptmq', '--table', 2], '--model fashion_vit needs --data'),
    (['--paper', 'ptmq', '--table', 3], 'needs --data'),
    (['--paper', 'ptmq', '--table', 4], '--table 4 is not supported'),
    (['--paper', 'ptmq', '--table', 3, '--methods', 'mse'], 'allowed are qdrop, dq_3'),
    (['--paper', 'ptmq', '--figure', 4, '--model', 'classifier'], 'take mmbitsplit pareto'),
    (['--figure', 3], '--figure is not supported with --paper bitsplit'),
])
def test_what_is_refused_is_one_line_and_nothing_is_run(options, message, call, tmp_path):
    code, printed = call('paper_tables', *options, '--work-dir', tmp_path / 'paper')
    assert code == 2 and message in printed.err and printed.err.count('\n') == 1
    assert not (tmp_path / 'paper').exists()


def test_a_table_of_ptmq_is_made_for_the_model_of_a_config(call, tmp_path):
    """Once calibrated, a second call takes everything over."""
    args = ('--paper', 'ptmq', '--table', 1, '--model', 'classifier', '--methods', 'ptmq',
            '--bits', 'w4a8', 8, '--iterations', 1, '--num-images', 32, '--work-dir', tmp_path)
    code, printed = call('paper_tables', *args)
    assert code == 0, printed.err
    rows = (tmp_path / 'ptmq_table1.md').read_text().splitlines()[4:]
    figures = [[float(cell) for cell in row.split('|')[2:4]] for row in rows]
    assert figures[0][0] == figures[0][1] > 80.0  # float
    assert all(abs(figure - figures[0][0]) < 5.0 for figure in figures[1])
    assert len(rows) == 2 and rows[1].startswith('| PTMQ |')
    before = (tmp_path / 'ptmq_cells.json').read_bytes()
    call('paper_tables', *args)
    assert (tmp_path / 'ptmq_cells.json').read_bytes() == before


def test_default_models_are_those_at_hand_that_fit():
    from bench.commands.paper_tables import choose_models
    from bench.paper import TABLES

    names = {number: [model.name for model in choose_models(TABLES[number], None, None)]
             for number in (3, 5)}
    assert names == {3: ['classifier', 'retinanet', 'mask_rcnn'], 5: ['retinanet', 'mask_rcnn']}


def test_failed_cells_are_shown_and_the_others_go_on(call, monkeypatch, tmp_path):
    from bench import grid

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
    from bench import model_zoo

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
