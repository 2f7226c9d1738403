"""Cells of a table: taken over when done, refused when they are of something else, independent."""

import json
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from mmengine.config import Config  # noqa: E402

from bench import grid  # noqa: E402
from bench.paper import BenchModel, Bits, Cell, bench_model  # noqa: E402
from mmbitsplit.calibration import read_request  # noqa: E402

FLOAT = {'accuracy/top1': 90.0}


def planned(table=3, method='bitsplit', seed=0, *, weights='w', **config):
    """A planned cell of a config that is never built."""
    cell = Cell(table, 'classifier', method, Bits(4, 4), seed)
    request = cell.quantization({})
    return grid.PlannedCell(
        cell=cell, config_name='configs/x.py',
        cfg=Config(dict(quantization=request, **config)), spec=read_request(request),
        command='python tools/x.py', weights=weights)


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the quantization; a list of what it was called with."""
    made = []

    def quantize(cfg, *, config_name, resume, float_metrics, report, integer):
        made.append(dict(folder=Path(cfg.work_dir), resume=resume, known=float_metrics,
                         report=report, integer=integer))
        print('from inside the cell')
        if cfg.get('breaks'):
            raise RuntimeError('no\n such  layer')
        results = {'config': config_name, 'method': {}, 'weight_bits': 4, 'activation_bits': 4,
                   'float': FLOAT, 'quantized': {'accuracy/top1': 88.0 + len(made)}, 'drop': {},
                   'size_bytes': {}, 'seconds': {}, 'peak_rss_bytes': 1, 'versions': {},
                   'calibration': {'image_ids': ['a'], 'seed': 0}}
        Path(cfg.work_dir, 'results.json').write_text(json.dumps(results))
        Path(cfg.work_dir, 'quantized.pth').write_text('large')
        return results

    monkeypatch.setattr(grid, 'quantize_config', quantize)
    return made


def test_a_finished_cell_is_taken_over(calls, tmp_path):
    first = grid.run_cell(planned(), tmp_path)
    again = grid.run_cell(planned(), tmp_path)
    assert len(calls) == 1 and not first.taken_over and again.taken_over
    assert again.run == first.run and first.run['command'] == 'python tools/x.py'
    assert first.run['cell'] == dict(table=3, model='classifier', method='bitsplit',
                                     weight_bits=4, activation_bits=4, scope='all', seed=0)
    assert first.run['quantization']['weight']['num_bits'] == 4


def test_what_a_cell_prints_goes_to_its_log(calls, tmp_path, capsys):
    grid.run_cell(planned(), tmp_path)
    assert capsys.readouterr().out == ''
    folder = tmp_path / 'table3/classifier/bitsplit_w4a4_s0'
    assert 'from inside the cell' in (folder / 'output.log').read_text()


def test_large_files_are_left_where_they_are_asked_for(calls, tmp_path):
    folder = tmp_path / 'table3/classifier'
    for seed, keep in enumerate((False, True)):
        grid.run_cell(planned(seed=seed), tmp_path, keep=keep)
        assert calls[-1]['report'] == keep
        assert (folder / f'bitsplit_w4a4_s{seed}/quantized.pth').exists() == keep


@pytest.mark.parametrize('change, named', [
    (dict(weights='v'), 'weights'), (dict(model=dict(depth=3)), 'config.model')])
def test_figures_of_something_else_are_refused_by_name(calls, change, named, tmp_path):
    grid.run_cell(planned(), tmp_path)
    other = grid.run_cell(planned(**change), tmp_path)
    assert len(calls) == 1 and f'{named} is' in other.run['error']
    assert '--redo' in other.run['error']
    redone = grid.run_cell(planned(**change), tmp_path, redo=True)
    assert len(calls) == 2 and 'error' not in redone.run and not calls[1]['resume']


def test_the_float_model_is_evaluated_once(calls, tmp_path):
    for cell in (planned(), planned(seed=1), planned(method='tflite')):
        grid.run_cell(cell, tmp_path)
    assert [call['known'] for call in calls] == [None, FLOAT, FLOAT]
    grid.run_cell(planned(method='mse', test_evaluator=dict(type='Other')), tmp_path)
    assert calls[-1]['known'] is None


def test_the_same_cell_of_another_table_is_not_run_again(calls, tmp_path):
    first = grid.run_cell(planned(table=3), tmp_path)
    second = grid.run_cell(planned(table=4), tmp_path)
    assert len(calls) == 1 and second.taken_over
    assert second.run['quantized'] == first.run['quantized']
    assert second.run['cell']['table'] == 4
    grid.run_cell(planned(table=4, weights='v', seed=0), tmp_path / 'other')
    assert len(calls) == 2


def test_a_cell_that_fails_is_noted_and_tried_again(calls, tmp_path):
    broken = grid.run_cell(planned(breaks=True), tmp_path)
    assert broken.run['error'] == 'RuntimeError: no such layer'
    folder = tmp_path / 'table3/classifier/bitsplit_w4a4_s0'
    assert 'Traceback' in json.loads((folder / 'failure.json').read_text())['traceback']
    grid.run_cell(planned(breaks=True), tmp_path)
    assert [call['resume'] for call in calls] == [False, True]
    mended = grid.run_cell(planned(), tmp_path)
    assert 'error' not in mended.run and not (folder / 'failure.json').exists()
    assert not calls[-1]['resume']  # another config: nothing of the broken run is taken over


def test_interrupting_is_no_failure(calls, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, 'quantize_config', interrupt)
    with pytest.raises(KeyboardInterrupt):
        grid.run_cell(planned(), tmp_path)
    folder = tmp_path / 'table3/classifier/bitsplit_w4a4_s0'
    assert not (folder / 'failure.json').exists()


def test_a_work_dir_that_cannot_be_written(calls, tmp_path):
    (tmp_path / 'file').write_text('')
    outcome = grid.run_cell(planned(), tmp_path / 'file')
    assert 'cannot be written' in outcome.run['error'] and not calls


def test_configs_that_are_not_there_or_do_not_quantize(tmp_path):
    with pytest.raises(ValueError, match='no/such.py .* does not exist'):
        grid.plan_cells(bench_model('no/such.py'), [])
    path = tmp_path / 'plain.py'
    path.write_text('model = dict()\n')
    with pytest.raises(ValueError, match="no 'quantization' dict"):
        grid.plan_cells(bench_model(str(path)), [])
    path.write_text("custom_imports = dict(imports=['no_such_module_here'])\n")
    with pytest.raises(ValueError, match='PYTHONPATH=.'):
        grid.plan_cells(BenchModel('x', 'x', str(path)), [])
