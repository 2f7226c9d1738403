"""tools/quantize.py on the demo classifier: mmpretrain's way of building models and data."""

import json

import pytest

from mmbitsplit.models.layers.integer_support import why_no_integers

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/classifier_digits_w4a8.py'


@pytest.fixture(scope='module')
def classifier(run_tool, tmp_path_factory):
    """Work directory of one run."""
    work_dir = tmp_path_factory.mktemp('classifier')
    done = run_tool('tools/quantize.py', CONFIG, '--work-dir', work_dir, '--integer', 'auto',
                    '--cfg-options',
                    'quantization.calibration.num_images=64',
                    'quantization.calibration.rows_per_layer=2048')
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


@pytest.fixture(scope='module')
def results(classifier):
    return json.loads((classifier / 'results.json').read_text())


def test_a_classifier_is_quantized_and_reloads_exactly(classifier, results, run_tool, tmp_path):
    assert results['float']['accuracy/top1'] > 85
    assert results['drop']['accuracy/top1'] < 2
    assert why_no_integers() is not None or results['integer']['layers'] >= 1
    again = run_tool('tools/test.py', classifier / 'quantized_config.py',
                     classifier / 'quantized.pth', '--out', tmp_path / 'metrics.json',
                     '--work-dir', tmp_path / 'again', '--integer', 'auto')
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / 'metrics.json').read_text()) == results['quantized']


def test_the_upstream_tool_gives_the_same_figures(classifier, results, run_tool,
                                                  find_upstream_test, tmp_path):
    done = run_tool(find_upstream_test('mmpretrain'), classifier / 'quantized_config.py',
                    classifier / 'quantized.pth', '--work-dir', tmp_path / 'work', '--out',
                    tmp_path / 'metrics.json', '--out-item', 'metrics', upstream=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # Upstream computes in float, where a score may fall on the other side of another.
    assert json.loads((tmp_path / 'metrics.json').read_text()) == pytest.approx(
        results['quantized'], abs=0.5)


def test_a_damaged_file_is_one_line(classifier, run_tool, tmp_path):
    data = bytearray((classifier / 'quantized.pth').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'damaged.pth').write_bytes(data)
    done = run_tool('tools/test.py', classifier / 'quantized_config.py',
                    tmp_path / 'damaged.pth', '--work-dir', tmp_path / 'work')
    assert done.returncode == 2
    error, = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert 'damaged.pth: 1 tensor(s) are damaged' in error and 'Copy the file again' in error
