"""tools/paper_tables.py on the demo classifier; store_results after it."""

import json

import pytest

pytestmark = pytest.mark.slow

FEW = ('quantization.calibration.num_images=32', 'quantization.calibration.rows_per_layer=256',
       'test_dataloader.dataset.indices=256', 'quantization.tuning=[]')


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
