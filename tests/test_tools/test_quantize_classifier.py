"""tools/quantize.py on the demo classifier: mmpretrain's way of building models and data."""

import json

CONFIG = 'configs/demo/classifier_digits_w4a8.py'


def test_a_classifier_is_quantized_and_reloads_exactly(run_tool, tmp_path):
    work_dir = tmp_path / 'run'
    done = run_tool('tools/quantize.py', CONFIG, '--work-dir', work_dir, '--cfg-options',
                    'quantization.calibration.num_images=64',
                    'quantization.calibration.rows_per_layer=2048')
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((work_dir / 'results.json').read_text())
    assert results['float']['accuracy/top1'] > 85
    assert results['drop']['accuracy/top1'] < 2
    again = run_tool('tools/test.py', work_dir / 'quantized_config.py',
                     work_dir / 'quantized.pth', '--out', tmp_path / 'metrics.json',
                     '--work-dir', tmp_path / 'again')
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / 'metrics.json').read_text()) == results['quantized']
