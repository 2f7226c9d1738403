"""The report of a real run, and the sensitivity of a few layers of the demo detector."""

import csv
import json

import pytest

pytestmark = pytest.mark.slow

CONFIG = 'configs/demo/retinanet_digits_w4a8.py'
LAYERS = 'bbox_head.retina_*'


def test_the_run_leaves_a_report_with_everything(quantized):
    work_dir = quantized[0]
    page = (work_dir / 'report.html').read_text()
    data = json.loads((work_dir / 'report_data.json').read_text())
    layers = json.loads((work_dir / 'layers.json').read_text())['layers']
    results = json.loads((work_dir / 'results.json').read_text())
    assert len(page.encode()) < 5_000_000 and 'https:' not in page and 'http:' not in page
    assert all(f'data-layer="{row["name"]}"' in page for row in layers)
    assert not data['problems'] and not (work_dir / 'report_error.txt').exists()
    for row in layers:
        stored = data['layers'][row['name']]
        size = 1
        for side in row['shape']:
            size *= side
        assert sum(stored['histogram']) == size
        assert stored['ranges']['num_channels'] == row['shape'][1]
        assert (stored['ranges']['clip_high'] is None) == (row['activation_bits'] is None)
    rows = data['classes']['bbox']
    assert len(rows) == 10
    # COCO's average is the mean over the classes that are there; the tool rounds to 3 digits.
    for model in ('float', 'quantized'):
        known = [row[model] for row in rows if row[model] is not None]
        assert sum(known) / len(known) == pytest.approx(results[model]['coco/bbox_mAP'],
                                                        abs=2e-3)
    pictures = data['pictures']
    changes = [item['change'] for item in pictures['items']]
    assert pictures['watched'] == pictures['total'] == 40
    assert changes == sorted(changes, reverse=True) and len(changes) == 12 and changes[0] > 0


def test_the_run_is_shown_in_the_visualizer_of_its_config(quantized):
    work_dir, _ = quantized
    scalars, = work_dir.glob('*/vis_data/scalars.json')
    told = [json.loads(line) for line in scalars.read_text().splitlines()]
    results, layers = (json.loads((work_dir / f'{name}.json').read_text())
                       for name in ('results', 'layers'))
    figures = next(line for line in told if 'quantization/drop/coco/bbox_mAP' in line)
    assert figures['quantization/quantized/coco/bbox_mAP'] == results['quantized']['coco/bbox_mAP']
    assert [line['quantization/layers/error'] for line in told
            if 'quantization/layers/error' in line] == [row['error'] for row in layers['layers']]
    assert [*work_dir.glob('*/vis_data/vis_image/quantization_most_changed_00*.png')]


def test_the_metrics_are_those_without_a_report(quantized):
    """Nothing was added to what the user's evaluator tells."""
    results = json.loads((quantized[0] / 'results.json').read_text())
    assert set(results['quantized']) == {
        f'coco/bbox_mAP{suffix}' for suffix in ('', '_50', '_75', '_s', '_m', '_l')}


@pytest.fixture(scope='module')
def measured(run_tool, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('sensitivity')
    done = run_tool('tools/analysis_tools/sensitivity.py', CONFIG, '--work-dir', work_dir,
                    '--layers', LAYERS, '--weight-bits', 2, 8, '--activation-bits', 3,
                    '--images', 3, '--metric-images', 6, '--cfg-options',
                    'quantization.calibration.rows_per_layer=1024')
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir, done


def test_each_layer_is_tried_at_each_width(measured):
    work_dir, done = measured
    with open(work_dir / 'sensitivity.csv') as file:
        rows = list(csv.DictReader(file))
    assert [(row['layer'], row['what'], row['num_bits']) for row in rows] == [
        (layer, what, bits) for layer in ('bbox_head.retina_cls', 'bbox_head.retina_reg')
        for what, bits in (('weight', '2'), ('weight', '8'), ('activation', '3'))]
    for two, eight in ((0, 1), (3, 4)):
        assert float(rows[two]['error']) > 100 * float(rows[eight]['error']) > 0
    state = json.loads((work_dir / 'sensitivity.json').read_text())
    assert 0.3 < state['float_metrics']['coco/bbox_mAP'] <= 1  # of the few images alone
    for row in rows:
        assert float(row['coco/bbox_mAP']) <= state['float_metrics']['coco/bbox_mAP'] + 0.05
    for suffix in ('md', 'html'):
        assert 'bbox_head.retina_cls' in (work_dir / f'sensitivity.{suffix}').read_text()
    assert '2/2 bbox_head.retina_reg' in done.stderr


def test_a_resumed_run_goes_on_after_what_is_done(measured, run_tool):
    work_dir, _ = measured
    path = work_dir / 'sensitivity.json'
    state = json.loads(path.read_text())
    expected = state['rows']
    path.write_text(json.dumps({**state, 'rows': expected[:3], 'done': state['done'][:1]}))
    arguments = ['tools/analysis_tools/sensitivity.py', CONFIG, '--work-dir', work_dir,
                 '--layers', LAYERS, '--weight-bits', 2, 8, '--activation-bits', 3, '--images', 3,
                 '--metric-images', 6, '--resume', '--cfg-options']
    done = run_tool(*arguments, 'quantization.calibration.rows_per_layer=1024')
    assert done.returncode == 0, done.stderr[-3000:]
    assert '1/2' not in done.stderr and '2/2 bbox_head.retina_reg' in done.stderr
    assert json.loads(path.read_text())['rows'] == expected
    other = run_tool(*arguments, 'quantization.calibration.rows_per_layer=512')
    assert other.returncode == 2 and 'rows_per_layer' in other.stderr
