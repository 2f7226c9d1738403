"""tools/quantize.py on the demo detector, and what others make of its files."""

import json

import pytest
import torch

from mmbitsplit.apis import load_quantized
from mmbitsplit.export import read_checkpoint
from mmbitsplit.models import quantized_layers

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/retinanet_digits_w4a8.py'
WEIGHTS = 'demo/weights/retinanet_digits_float.pth'


@pytest.fixture(scope='module')
def results(quantized):
    return json.loads((quantized[0] / 'results.json').read_text())


@pytest.fixture(scope='module')
def upstream_test(find_upstream_test):
    """mmdet's own tools/test.py."""
    return find_upstream_test('mmdet')


def upstream_metrics(work_dir):
    """The metrics that mmengine's logger left in a work directory."""
    return json.loads(next(work_dir.glob('*/*.json')).read_text())


def test_results_have_every_key(results):
    assert results['config'] == CONFIG and results['method']['type'] == 'BitSplit'
    assert (results['weight_bits'], results['activation_bits']) == (4, 8)
    for name in ('float', 'quantized', 'drop'):
        assert 'coco/bbox_mAP' in results[name]
    for name, value in results['drop'].items():
        assert value == results['float'][name] - results['quantized'][name]
    assert set(results['size_bytes']) == {'float', 'quantized_checkpoint', 'quantized_payload'}
    assert {'float_forward', 'calibration', 'solve', 'evaluation'} <= set(results['seconds'])
    assert all(value > 0 for value in results['seconds'].values())
    assert results['peak_rss_bytes'] > 0
    ids = results['calibration']['image_ids']
    assert len(set(ids)) == 8 and results['calibration']['seed'] == 0
    assert {'mmbitsplit', 'python', 'torch', 'mmengine', 'mmcv', 'mmdet'} <= set(
        results['versions'])
    assert 'untrained' not in results


def test_quantized_is_near_float(results):
    assert results['float']['coco/bbox_mAP'] > 0.5
    assert results['drop']['coco/bbox_mAP'] < 0.03


def test_the_table_is_printed(quantized, results):
    lines = [line for line in quantized[1].splitlines() if line.startswith('|')]
    assert f"{100 * results['quantized']['coco/bbox_mAP']:.2f}" in lines[-1] and CONFIG in lines[-1]
    assert str(quantized[0]) in quantized[1]


def test_a_row_a_layer(quantized):
    table = json.loads((quantized[0] / 'layers.json').read_text())
    rows = {row['name']: row for row in table['layers']}
    assert len(rows) == len(table['layers']) == 32
    assert rows['backbone.conv1']['role'] == 'first'
    assert rows['backbone.conv1']['activation_bits'] is None
    for name in ('bbox_head.retina_cls', 'bbox_head.retina_reg'):
        assert rows[name]['role'] == 'last' and rows[name]['weight_bits'] == 8
        assert rows[name]['calls'] == 8 * 3  # images, levels
    inner = [row for row in rows.values() if row['role'] == 'inner']
    assert len(inner) == len(rows) - 3
    for row in inner:
        assert (row['weight_bits'], row['activation_bits']) == (4, 8)
        assert row['error'] <= row['error_rounding'] and row['rows'] > 0
    assert not table['kept_float'] and len(table['folded_batch_norms']) == 20


def test_the_checkpoint_is_small_and_plain(quantized, results):
    path = quantized[0] / 'quantized.pth'
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {'state_dict', 'meta'}
    sizes = results['size_bytes']
    assert sizes['quantized_checkpoint'] == path.stat().st_size < 0.2 * sizes['float']
    packed = read_checkpoint(path)
    assert sizes['quantized_payload'] == packed.payload_bytes < sizes['quantized_checkpoint']
    assert sizes['quantized_checkpoint'] < 1.02 * sizes['quantized_payload'] + 20000  # header
    meta = checkpoint['meta']
    assert meta['calibration']['image_ids'] == results['calibration']['image_ids']
    assert len(meta['float_checkpoint_sha256']) == 64
    assert list(meta['dataset_meta']['classes'])[:2] == ['0', '1']


def test_no_temporary_file_is_left(quantized):
    names = {path.name for path in quantized[0].iterdir() if path.is_file()}
    assert {'results.json', 'layers.json', 'quantized.pth', 'quantized_config.py'} <= names
    assert not any('tmp' in name or name.startswith('.') for name in names)


def test_the_model_loads_in_python(quantized):
    model = load_quantized(quantized[0] / 'quantized_config.py', quantized[0] / 'quantized.pth')
    layers = dict(quantized_layers(model))
    assert len(layers) == 32 and not model.training
    assert all(layer.quantized for layer in layers.values())
    with pytest.raises(ValueError, match='no quantization plan'):
        load_quantized(quantized[0] / 'quantized_config.py', WEIGHTS)


def test_our_test_tool_gives_the_same_figures(quantized, results, run_tool, tmp_path):
    done = run_tool('tools/test.py', quantized[0] / 'quantized_config.py',
                    quantized[0] / 'quantized.pth', '--work-dir', tmp_path / 'work',
                    '--integer', 'off', '--out', tmp_path / 'metrics.json')
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / 'metrics.json').read_text()) == results['quantized']


def test_upstream_test_tool_gives_the_same_figures(quantized, results, run_tool, upstream_test,
                                                   tmp_path):
    done = run_tool(upstream_test, quantized[0] / 'quantized_config.py',
                    quantized[0] / 'quantized.pth', '--work-dir', tmp_path, upstream=True)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = upstream_metrics(tmp_path)
    assert {name: metrics[name] for name in results['quantized']} == results['quantized']


def test_upstream_test_tool_quantizes_float_weights(quantized, results, run_tool, upstream_test,
                                                    small_evaluation, tmp_path):
    done = run_tool(upstream_test, CONFIG, WEIGHTS, '--work-dir', tmp_path, '--cfg-options',
                    *small_evaluation, upstream=True)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = upstream_metrics(tmp_path)
    assert {name: metrics[name] for name in results['quantized']} == results['quantized']
    assert {'quantized.pth', 'quantized_config.py', 'layers.json'} <= {
        path.name for path in tmp_path.iterdir()}
    ours, theirs = (torch.load(folder / 'quantized.pth', weights_only=True)['state_dict']
                    for folder in (quantized[0], tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
