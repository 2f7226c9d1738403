"""What is kept of a run, and what is refused."""

import json

import pytest

from bench.stored_runs import (
    CELL,
    FAILURE,
    RESULTS,
    read_folder,
    read_runs,
    stored_text,
    strip_run,
)
from mmbitsplit.report.tables import bits_of


@pytest.fixture
def results(make_run):
    """Contents of a results.json."""
    run = make_run(60.0)
    for name in ('cell', 'command'):
        del run[name]
    return {**run, 'calibration': {'image_ids': ['a', 'b', 'c'], 'seed': 7, 'num_batches': 3},
            'estimated_bytes': 5}


def test_image_names_are_left_out_and_figures_are_not(results):
    run = strip_run(results, 'make demo')
    assert run['calibration'] == {'num_images': 3, 'seed': 7} and run['command'] == 'make demo'
    assert run['quantized'] == results['quantized'] and 'estimated_bytes' not in run
    assert 'cell' not in run


@pytest.mark.parametrize('uniform', [True, False])
def test_widths_of_layers_are_kept_where_they_differ(results, uniform):
    bits = {'weight': {'mean': 4.3, 'min': 2, 'max': 8}, 'activation': None, 'uniform': uniform}
    run = strip_run({**results, 'bits': bits}, 'x')
    assert bits_of(run) == ('W4A4' if uniform else 'W4.3 (2-8) A32')
    assert ('bits' in run) != uniform


@pytest.mark.parametrize('change, message', [
    ({'untrained': True}, 'random weights'), ({'drop': None}, 'results without drop')])
def test_results_that_cannot_be_stored(results, change, message):
    results.update(change)
    results = {key: value for key, value in results.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        strip_run(results, 'x')


def test_a_folder_knows_its_cell(results, tmp_path):
    assert read_folder(tmp_path) is None
    (tmp_path / RESULTS).write_text(json.dumps(results))
    with pytest.raises(ValueError, match='does not know the command'):
        read_folder(tmp_path)
    assert read_folder(tmp_path, 'by hand')['command'] == 'by hand'
    (tmp_path / CELL).write_text(json.dumps({
        'cell': {'table': 3}, 'command': 'tables', 'quantization': {'scope': 'all'},
        'identity': {}}))
    run = read_folder(tmp_path, 'by hand')
    assert (run['command'], run['cell'], run['quantization']) == (
        'tables', {'table': 3}, {'scope': 'all'})


def test_a_failed_cell_is_a_failure_whatever_else_lies_there(results, tmp_path):
    (tmp_path / RESULTS).write_text(json.dumps(results))
    (tmp_path / FAILURE).write_text(json.dumps(
        {'cell': {'table': 3}, 'error': 'ValueError: x', 'traceback': 'long'}))
    assert read_folder(tmp_path) == {'cell': {'table': 3}, 'error': 'ValueError: x'}


def test_stored_text_reads_back_a_run_a_line(make_run, tmp_path):
    runs = [make_run(60.0), make_run(61.0, seed=1)]
    path = tmp_path / 'runs.json'
    path.write_text(stored_text(runs))
    assert read_runs([path]) == runs and read_runs([path, path]) == runs * 2
    assert len(path.read_text().splitlines()) == 4
    path.write_text(stored_text([]))
    assert read_runs([path]) == []


@pytest.mark.parametrize('content', [None, '[]', '{"runs": 3}', '{'])
def test_files_that_hold_no_runs(content, tmp_path):
    path = tmp_path / 'runs.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match='runs.json is'):
        read_runs([path])
