"""Two runs in one table, from their files alone."""

import csv
import json

import pytest

from mmbitsplit.cli import compare_runs, make_report
from mmbitsplit.cli.compare_runs import run_names


@pytest.fixture
def work_dirs(tmp_path):
    made = []
    for bits, score in ((4, 0.5), (8, 0.6)):
        path = tmp_path / 'runs' / f'w{bits}'
        path.mkdir(parents=True)
        (path / 'results.json').write_text(json.dumps({
            'config': 'a.py', 'method': {'type': 'BitSplit'}, 'weight_bits': bits,
            'activation_bits': 8, 'float': {'coco/bbox_mAP': 0.61},
            'quantized': {'coco/bbox_mAP': score}, 'drop': {'coco/bbox_mAP': 0.61 - score},
            'size_bytes': {'float': 8e6, 'quantized_checkpoint': bits * 1e6},
            'seconds': {'calibration': 3.0, 'solve': 1.0}, 'peak_rss_bytes': 1,
            'calibration': {'image_ids': [], 'seed': 0}, 'versions': {}}))
        (path / 'layers.json').write_text(json.dumps({'layers': []}))
        made.append(path)
    return made


def test_two_runs_make_one_table(work_dirs, tmp_path, capsys):
    pytest.importorskip('plotly')
    out = tmp_path / 'out'
    assert compare_runs.main([*map(str, work_dirs), '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / 'comparison.md').read_text().strip() in printed
    with open(out / 'comparison.csv') as file:
        rows = list(csv.DictReader(file))
    assert [(row['run'], row['bits'], float(row['quantized'])) for row in rows] == [
        ('w4', 'W4A8', 50.0), ('w8', 'W8A8', 60.0)]
    page = (out / 'comparison.html').read_text()
    assert 'w4' in page and 'w8' in page and len(page.encode()) < 5_000_000


def test_names_are_what_is_not_shared(tmp_path):
    paths = [tmp_path / 'a' / 'x', tmp_path / 'b' / 'x']
    assert run_names(paths) == ['a/x', 'b/x']
    assert run_names(paths[:1]) == ['x']
    assert len(set(run_names([tmp_path, tmp_path / 'a', *paths]))) == 4
    with pytest.raises(ValueError, match='twice'):
        run_names([paths[0], paths[0]])


def test_errors_are_one_line(work_dirs, tmp_path, capsys):
    (work_dirs[0] / 'results.json').write_text('{')
    for main in (make_report.main, compare_runs.main):
        assert main([str(work_dirs[0])]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith('error: ') and 'results.json' in error and '\n' not in error


def test_a_report_is_made_again(work_dirs, capsys):
    pytest.importorskip('plotly')
    assert make_report.main([str(path) for path in work_dirs]) == 0
    assert capsys.readouterr().out.split() == [str(path / 'report.html') for path in work_dirs]
    assert all((path / 'report.html').stat().st_size > 1_000_000 for path in work_dirs)
