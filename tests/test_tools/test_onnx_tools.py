"""tools/export_onnx.py and tools/test_onnx.py on the quantized demo detector."""

import json

import pytest

pytest.importorskip('onnxscript')

from mmbitsplit.export.onnx.processor import saturates  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(run_tool, quantized, tmp_path_factory):
    """The exported detector."""
    pytest.importorskip('onnxruntime')
    folder = tmp_path_factory.mktemp('onnx')
    done = run_tool('tools/export_onnx.py', quantized[0] / 'quantized_config.py',
                    quantized[0] / 'quantized.pth', '--output', folder, '--check', 'onnxruntime')
    assert done.returncode == 0, done.stderr[-3000:]
    assert '32 quantized layers' in done.stdout and 'run in integers' in done.stdout
    # The last layers have 8-bit weights.
    assert 'VNNI' in done.stdout and 'bbox_head.retina_cls' in done.stdout
    return folder


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_metrics_are_those_of_the_quantized_model(run_tool, quantized, folder, runtime, tmp_path):
    pytest.importorskip(runtime)
    done = run_tool('tools/test_onnx.py', quantized[0] / 'quantized_config.py', folder,
                    '--checkpoint', quantized[0] / 'quantized.pth', '--compare', '4',
                    '--runtime', runtime, '--threads', '1', '--work-dir', tmp_path,
                    '--out', tmp_path / 'metrics.json',
                    '--out-comparison', tmp_path / 'comparison.json')
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    expected = json.loads((quantized[0] / 'results.json').read_text())['quantized']
    assert set(metrics) == set(expected)
    assert abs(metrics['coco/bbox_mAP'] - expected['coco/bbox_mAP']) < 0.005  # of 40 images
    found = json.loads((tmp_path / 'comparison.json').read_text())['model']
    assert ('sums of two products saturate' in done.stderr) == saturates(runtime)
    if saturates(runtime):  # in the last layers: nothing bounds how far single outputs are off
        return
    # Rounding errors of single precision spread in this model; torch knows how far.
    assert found['within_one_step'] >= min(0.999, found['torch_double_within_one_step'] - 0.002)
    assert found['largest_steps'] < 3 + 2 * found['torch_double_largest_steps']


def test_a_missing_checkpoint_is_one_line(run_tool, tmp_path):
    done = run_tool('tools/export_onnx.py', 'configs/demo/retinanet_digits_w4a8.py',
                    tmp_path / 'none.pth')
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith('error: ')
    assert 'does not exist' in done.stderr
