"""tools/quantize.py on the demo's vision transformer: its attention too, and it reloads exactly."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/vit_digits_w4a6.py'
WEIGHTS = Path(__file__).resolve().parents[2] / 'demo/weights/vit_digits_float.pth'


@pytest.fixture(scope='module')
def work_dir(run_tool, tmp_path_factory):
    """Work directory of one run."""
    work_dir = tmp_path_factory.mktemp('vit')
    done = run_tool('tools/quantize.py', CONFIG, '--work-dir', work_dir, '--cfg-options',
                    'quantization.calibration.num_images=64',
                    'quantization.calibration.rows_per_layer=2048')
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


@pytest.fixture(scope='module')
def results(work_dir):
    return json.loads((work_dir / 'results.json').read_text())


def test_the_weights_in_the_repository_are_a_good_float_model(results):
    assert WEIGHTS.stat().st_size < 1e6
    assert results['float']['accuracy/top1'] > 85


def test_it_loses_little_with_all_its_products_quantized(work_dir, results):
    products = json.loads((work_dir / 'layers.json').read_text())['products']
    assert [row['name'] for row in products] == [
        f'backbone.layers.{block}.attn.product_{name}' for block in range(4)
        for name in ('qk', 'av')]
    shares = results['multiplications']
    assert shares['quantized'] == pytest.approx(1) and shares['products'] > 0
    assert results['drop']['accuracy/top1'] < 2


def test_it_reloads_exactly(work_dir, results, run_tool, tmp_path):
    again = run_tool('tools/test.py', work_dir / 'quantized_config.py', work_dir / 'quantized.pth',
                     '--out', tmp_path / 'metrics.json', '--work-dir', tmp_path / 'again')
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / 'metrics.json').read_text()) == results['quantized']
