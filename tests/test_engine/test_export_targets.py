"""Which graphs a model gives, and graphs in the place of its tensors."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

pytest.importorskip('onnx_ir')

from mmbitsplit.engine.onnx.evaluation import evaluation_shape, load_graphs  # noqa: E402
from mmbitsplit.engine.onnx.export_targets import (
    architecture,
    export_requests,
    preprocessing_facts,
    use_graphs,
)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(Config.fromfile(f'configs/demo/{name}.py').model).eval()


@pytest.fixture(autouse=True)
def in_project(monkeypatch, det_scope):
    from pathlib import Path
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def test_a_two_stage_detector_gives_three_graphs():
    model = build('mask_rcnn_digits_w4a8')
    requests = export_requests(model, (64, 64), dynamic=True)
    assert [request.name for request in requests] == ['proposals', 'box_head', 'mask_head']
    assert [tuple(request.inputs[0].shape[1:]) for request in requests] == [
        (3, 64, 64), (48, 7, 7), (48, 14, 14)]
    assert requests[1].dynamic == {'features': {0: 'regions'}}
    with torch.no_grad():
        features, (scores, boxes) = requests[0].module(requests[0].inputs[0])
    assert len(features) == len(scores) == len(boxes) == 4


class EchoGraph:
    """Computes with the float model what a graph would."""

    def __init__(self, module):
        self.module = module

    @torch.no_grad()
    def __call__(self, *inputs):
        from torch.utils._pytree import tree_leaves
        return tree_leaves(self.module(*inputs))


def names_of(nested):
    if isinstance(nested, (list, tuple)):
        return [names_of(item) for item in nested]
    return 'name'


@pytest.mark.parametrize('name', ['mask_rcnn_digits_w4a8', 'retinanet_digits_w4a8'])
def test_detections_are_those_of_the_model_when_graphs_compute_the_same(name):
    """The graphs here are the float model's own modules; the model that uses them has other
    weights, so that every tensor must come from the graphs."""
    reference, model = build(name), build(name)
    for parameter in model.parameters():
        parameter.data.zero_()
    graphs = {}
    for request in export_requests(reference, (64, 64)):
        with torch.no_grad():
            graphs[request.name] = (EchoGraph(request.module),
                                    names_of(request.module(*request.inputs)))
    seen = []
    use_graphs(model, graphs, lambda graph, inputs, outputs: seen.append(graph))
    data = {'inputs': [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)],
            'data_samples': [sample()]}
    with torch.no_grad():
        found = model.test_step({**data, 'data_samples': [sample()]})[0].pred_instances
        expected = reference.test_step(data)[0].pred_instances
    assert len(expected.scores) > 0
    torch.testing.assert_close(found.bboxes, expected.bboxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert set(seen) == set(graphs)


def sample():
    from mmdet.structures import DetDataSample
    return DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64),
                                       scale_factor=(1.0, 1.0), img_id=1))


def test_a_missing_graph_is_named():
    with pytest.raises(ValueError, match="'proposals'.*two-stage detector.*missing"):
        use_graphs(build('mask_rcnn_digits_w4a8'), {'model': (None, None)})


def test_other_models_are_refused():
    with pytest.raises(ValueError, match='Linear cannot be exported; allowed are'):
        architecture(nn.Linear(2, 2))


def test_the_file_says_what_an_image_goes_through():
    facts = preprocessing_facts(build('retinanet_digits_w4a8'))
    assert facts['channels'] == 'RGB' and facts['pad_size_divisor'] == 32
    assert facts['mean'] == pytest.approx([123.675, 116.28, 103.53])


def test_the_shape_is_what_the_test_pipeline_makes():
    cfg = Config.fromfile('configs/retinanet_r50_w4a8.py')
    assert evaluation_shape(cfg, 32) == (800, 1344)
    assert evaluation_shape(Config.fromfile('configs/resnet50_w4a8.py')) == (224, 224)
    with pytest.raises(ValueError, match='--shape HEIGHT WIDTH'):
        evaluation_shape(Config.fromfile('configs/demo/classifier_digits_w4a8.py'))


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no .onnx file'):
        load_graphs(tmp_path)
