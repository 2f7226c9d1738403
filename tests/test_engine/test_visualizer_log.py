"""A finished run in the backends of mmengine's visualizer: its own, TensorBoard's and MLflow's."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import (
    LocalVisBackend,
    MLflowVisBackend,
    TensorboardVisBackend,
)
from PIL import Image

from mmbitsplit.engine.results.visualizer_log import caption_of, show_figures, show_run
from mmbitsplit.report.drawing import to_data_uri
from mmbitsplit.report.layer_pictures import GAP, LAYERS_A_PICTURE, layers_pictures, side_by_side

RESULTS = {
    'config': 'c', 'method': {'type': 'BitSplit'}, 'weight_bits': 4, 'activation_bits': 8,
    'float': {'coco/bbox_mAP': 0.4}, 'quantized': {'coco/bbox_mAP': 0.39},
    'drop': {'coco/bbox_mAP': 0.01}, 'seconds': {'solve': 2.5}, 'peak_rss_bytes': 1,
    'size_bytes': {'float': 80, 'quantized_checkpoint': 12}, 'calibration': {}, 'versions': {}}
ROWS = [{'name': f'backbone.layer{number}', 'weight_bits': 4 + number % 2,
         'activation_bits': None if number == 0 else 8, 'error': 10.0 ** -number,
         'error_rounding': 2 * 10.0 ** -number} for number in range(5)]
BLUE, RED = (0, 0, 255), (255, 0, 0)
# What MLflow and TensorBoard are told, by name: the last value of each curve.
TOLD = {'quantization/quantized/coco/bbox_mAP': 0.39, 'quantization/drop/coco/bbox_mAP': 0.01,
        'quantization/size_bytes/float': 80.0, 'quantization/seconds/solve': 2.5,
        'quantization/layers/error': 1e-4, 'quantization/layers/weight_bits': 4.0}


def picture(colour, width=30):
    return to_data_uri(Image.new('RGB', (width, 20), colour))


@pytest.fixture
def work_dir(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    for name, content in (('results', RESULTS), ('layers', {'layers': ROWS}), ('report_data', {
            'format': 1, 'layers': {}, 'problems': [],
            'classes': {'bbox': [{'class': 'dog', 'float': 0.5, 'quantized': 0.4}]},
            'pictures': {'items': [{'name': 'a.jpg', 'counts': {'float': 3, 'quantized': 2},
                                    'float': picture(RED), 'quantized': picture(BLUE, 40)}]}})):
        (folder / f'{name}.json').write_text(json.dumps(content))
    return folder


def make_visualizer(*backends):
    """A visualizer that is no instance of its class's register: nothing is left behind."""
    visualizer = Visualizer(vis_backends=None)
    visualizer._vis_backends = {type(backend).__name__: backend for backend in backends}
    return visualizer


def test_the_local_backend_has_scalars_and_pictures(work_dir, tmp_path):
    assert show_run(make_visualizer(LocalVisBackend(str(tmp_path / 'vis'))), work_dir)
    lines = [json.loads(line) for line in (tmp_path / 'vis/scalars.json').read_text().splitlines()]
    assert lines[0]['quantization/quantized/coco/bbox_mAP'] == 0.39
    layers = [line for line in lines if 'quantization/layers/error' in line]
    assert [line['step'] for line in layers] == list(range(len(ROWS)))
    assert [line['quantization/layers/error'] for line in layers] == [r['error'] for r in ROWS]
    assert 'quantization/layers/activation_bits' not in layers[0]  # a float input has none
    images = {path.name.split('.')[0]: np.asarray(Image.open(path))
              for path in (tmp_path / 'vis/vis_image').iterdir()}
    assert set(images) == {'quantization_layers_00', 'quantization_classes_bbox',
                           'quantization_most_changed_00'}
    pair = images['quantization_most_changed_00']
    assert (pair[:20, :30 + GAP + 40].std((0, 1)) > 0).all()
    said = pair[20:]  # in black on white, all of it within the picture
    assert said.min() < 50 and (said[:, -1] == 255).all() and (said[-1] == 255).all()
    assert pair[10, 15, 0] > 200 > pair[10, 15, 2] and pair[10, 60, 2] > 200 > pair[10, 60, 0]


def test_answers_are_told_below_a_picture():
    card = {'name': 'a.png', 'truth': '0',
            'answers': {'float': '4 (0.50)', 'quantized': '0 (0.51)'}}
    assert caption_of(card) == ['a.png', 'float: 4 (0.50)', 'quantized: 0 (0.51)', 'truth: 0']
    assert caption_of({**card, 'truth': None})[-1] == 'quantized: 0 (0.51)'


def test_metrics_of_several_widths_are_a_curve_and_their_errors_markers(tmp_path):
    backend = LocalVisBackend(str(tmp_path / 'vis'))
    show_figures(make_visualizer(backend), {**RESULTS, 'widths': [
        {'weight_bits': bits, 'quantized': {'accuracy/top1': 80.0 + bits}} for bits in (3, 8)]})
    lines = [json.loads(line) for line in (tmp_path / 'vis/scalars.json').read_text().splitlines()]
    assert [(line['step'], line['quantization/widths/accuracy/top1']) for line in lines[1:]] == [
        (3, 83.0), (8, 88.0)]
    several = [{**row, 'width_errors': [{'weight_bits': 3, 'error': 0.5, 'of': 'layer'}]}
               for row in ROWS]
    plain, marked = layers_pictures(ROWS)[0], layers_pictures(several)[0]
    orange = [(np.abs(one.astype(int) - (0xd5, 0x5e, 0)).sum(-1) < 30).sum()
              for one in (plain, marked)]
    assert orange[0] == 0 < 20 < orange[1]


def test_tensorboard_has_them_too(work_dir, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert show_run(make_visualizer(TensorboardVisBackend(str(tmp_path / 'vis'))), work_dir)
    events = EventAccumulator(str(tmp_path / 'vis'))
    events.Reload()
    for name, value in TOLD.items():
        assert events.Scalars(name)[-1].value == pytest.approx(value), name
    assert [event.step for event in events.Scalars('quantization/layers/error')] == [*range(5)]
    assert 'quantization_most_changed_00.png' in events.Tags()['images']


def test_mlflow_s_file_store_has_them_too(work_dir, tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    before = mlflow.get_tracking_uri()
    backend = MLflowVisBackend(str(tmp_path / 'vis'), exp_name='ours')
    visualizer = make_visualizer(backend)
    try:
        visualizer.add_config(Config(dict(work_dir=str(work_dir))))  # as every Runner does
        assert show_run(visualizer, work_dir)
        run, = mlflow.search_runs(experiment_names=['ours'], output_format='list')
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(before)
    for name, value in TOLD.items():
        assert run.data.metrics[name] == pytest.approx(value), name
    artifacts = {path.name for path in (tmp_path / 'vis').rglob('artifacts/**/*')}
    assert {'quantization_layers_00.png', 'quantization_most_changed_00.png',
            'layers.json'} <= artifacts


def test_a_backend_that_fails_costs_the_run_nothing(work_dir, tmp_path):
    class Broken(LocalVisBackend):
        def add_image(self, *args, **kwargs):
            raise ConnectionError('the server is gone')

    broken = make_visualizer(Broken(str(tmp_path / 'vis')))
    assert show_run(broken, work_dir) is False
    assert show_run(make_visualizer(), work_dir)  # a config may have no backend


def test_many_layers_take_several_pictures_of_the_same_width():
    rows = [{**ROWS[1], 'name': f'layer{number}'} for number in range(LAYERS_A_PICTURE + 1)]
    first, second = layers_pictures(rows)
    assert first.dtype == np.uint8 and first.shape[1:] == second.shape[1:]
    assert first.shape[0] > 5 * second.shape[0] and len(np.unique(first)) > 10
    assert layers_pictures([{**ROWS[1], 'error': 0.0, 'error_rounding': float('nan')}])


def test_one_picture_alone_is_as_it_was():
    assert side_by_side([picture(RED)]).shape == (20, 30, 3)
