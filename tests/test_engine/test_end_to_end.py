"""Detectors with suppression in the graph, and files for mmdeploy's runtime."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from scipy.optimize import linear_sum_assignment
from torch import nn

from mmbitsplit.apis import export_onnx
from mmbitsplit.engine.onnx.end_to_end import check_end_to_end
from mmbitsplit.engine.onnx.mmdeploy_layout import _classifier_step, layout_files

pytestmark = pytest.mark.slow  # torch's exporter takes seconds a model

PROJECT = Path(__file__).resolve().parents[2]
SIZE = (128, 128)


def build(cfg, weights=None, scope='mmdet'):
    from mmdet.utils import register_all_modules as detectors
    from mmpretrain.utils import register_all_modules as classifiers
    (detectors if scope == 'mmdet' else classifiers)(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg)
    if weights:
        load_checkpoint(model, str(weights), map_location='cpu')
    return model.eval()


def scattered(cfg):
    """The same random weights in every run; scores spread, so that some boxes are suppressed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Config(cfg))
        model.init_weights()
        for module in model.bbox_head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    # Norms with the statistics of some images: without them signals die or explode with depth.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(random_images(8))
    return model.eval()


def random_images(count):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope='module')
def retinanet():
    cfg = Config.fromfile(PROJECT / 'configs/demo/retinanet_digits_w4a8.py')
    model = build(cfg.model, PROJECT / 'demo/weights/retinanet_digits_float.pth')
    model.cfg = cfg
    return model


@pytest.fixture(scope='module')
def yolox():
    return scattered(dict(
        type='YOLOX', data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125),
        neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
        bbox_head=dict(type='YOLOXHead', num_classes=3, in_channels=32, feat_channels=32),
        test_cfg=dict(score_thr=0.3, nms=dict(type='nms', iou_threshold=0.65))))


@pytest.fixture(scope='module')
def fcos():
    return scattered(dict(
        type='FCOS', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18), neck=dict(
            type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, start_level=1,
            add_extra_convs='on_output', num_outs=5, relu_before_extra_convs=True),
        bbox_head=dict(type='FCOSHead', num_classes=3, in_channels=32, feat_channels=32,
                       stacked_convs=1, norm_cfg=None),
        test_cfg=dict(nms_pre=100, score_thr=0.05, min_bbox_size=0, max_per_img=30,
                      nms=dict(type='nms', iou_threshold=0.5))))


def predicted(model, image):
    from mmdet.structures import DetDataSample
    sample = DetDataSample(metainfo=dict(
        img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, pad_shape=SIZE,
        scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        return model.predict(image, [sample], rescale=False)[0].pred_instances


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


@pytest.fixture(scope='module')
def laid_out(retinanet, tmp_path_factory):
    """The detector's file in the layout of mmdeploy."""
    file, = export_onnx(retinanet, tmp_path_factory.mktemp('layout'), shape=SIZE, end2end=True,
                        layout='mmdeploy')
    return file.path


def assert_predicts(graph, model, images):
    dets, labels = graph.run(None, {'image': images.numpy()})
    assert dets.shape[:2] == labels.shape and dets.shape[2] == 5
    for number in range(len(images)):
        expected = predicted(model, images[number:number + 1])
        found = int((dets[number, :, 4] > 0).sum())
        assert 3 < found == min(len(expected.scores), dets.shape[1])
        assert (np.diff(dets[number, :found, 4]) <= 0).all()
        # Equal scores may stand in either order, so rows are paired by what they say.
        got = np.column_stack([dets[number, :found], labels[number, :found] * 1000])
        want = np.column_stack([expected.bboxes, expected.scores, expected.labels * 1000])
        apart = np.abs(got[:, None] - want[None]).max(-1)
        rows, columns = linear_sum_assignment(apart)
        np.testing.assert_allclose(got[rows, :4], want[columns, :4], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(got[rows, 4:], want[columns, 4:], atol=1e-4)


def test_the_file_of_the_demo_detector_gives_what_it_predicts(retinanet, laid_out):
    graph = session(laid_out)
    assert [output.name for output in graph.get_outputs()] == ['dets', 'labels']
    images = random_images(3)
    for number in range(3):
        assert_predicts(graph, retinanet, images[number:number + 1])


@pytest.mark.parametrize('which', ['yolox', 'fcos'])
def test_other_heads_in_batches_of_any_size(which, request, tmp_path):
    model = request.getfixturevalue(which)
    file, = export_onnx(model, tmp_path, shape=SIZE, end2end=True, dynamic=True)
    for count in (1, 3):
        assert_predicts(session(file.path), model, random_images(count))


def test_the_layout_of_a_detector(retinanet, laid_out):
    proto = onnx.load(laid_out)
    assert proto.opset_import[0].version == 18 and proto.ir_version == 8
    assert {path.name for path in laid_out.parent.iterdir()} == {
        'end2end.onnx', 'deploy.json', 'pipeline.json', 'detail.json'}
    files = layout_files(retinanet, retinanet.cfg, 'end2end.onnx', SIZE)
    assert files['deploy.json']['task'] == 'Detector'
    row, = files['deploy.json']['models']
    before, net, after = files['pipeline.json']['pipeline']['tasks']
    assert row['name'] == net['name'] and row['backend'] == 'onnxruntime'
    assert net['input_map'] == {'img': session(laid_out).get_inputs()[0].name}
    steps = {step['type']: step for step in before['transforms']}
    assert list(steps) == ['LoadImageFromFile', 'Resize', 'Normalize', 'Pad', 'ImageToTensor',
                           'Collect']
    assert steps['Resize'] == {'type': 'Resize', 'size': [128, 128], 'keep_ratio': True}
    assert steps['Normalize']['mean'] == retinanet.data_preprocessor.mean.flatten().tolist()
    assert after['component'] == 'ResizeBBox' and after['input'] == ['prep_output', 'infer_output']
    assert 'pad_val' not in steps['Pad']  # zeros, as the preprocessor pads
    wide = layout_files(retinanet, retinanet.cfg, 'end2end.onnx', (96, 128))['pipeline.json']
    resize = wide['pipeline']['tasks'][0]['transforms'][1]
    assert resize == {'type': 'Resize', 'size': [128, 96], 'keep_ratio': False}


def test_images_that_are_padded_before_are_so_in_the_layout(yolox):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=SIZE, keep_ratio=True),
        dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
        dict(type='PackDetInputs')]))))
    steps = layout_files(yolox, cfg, 'end2end.onnx', SIZE)['pipeline.json']['pipeline'][
        'tasks'][0]['transforms']
    assert [step['type'] for step in steps][1:4] == ['Resize', 'Pad', 'Normalize']
    assert steps[2]['pad_val'] == 114.0 and steps[3]['std'] == [1.0] * 3
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Mosaic'))
    with pytest.raises(ValueError, match="the step 'Mosaic'"):
        layout_files(yolox, cfg, 'end2end.onnx', SIZE)


def test_images_that_are_stretched_are_so_in_the_layout(yolox):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        dict(type='mmdet.Resize', scale=SIZE, keep_ratio=False)]))))
    steps = layout_files(yolox, cfg, 'end2end.onnx', SIZE)['pipeline.json']['pipeline'][
        'tasks'][0]['transforms']
    assert steps[1]['keep_ratio'] is False


@pytest.mark.parametrize('step, said', [
    (dict(type='CenterCrop', crop_size=(40, 32)), {'type': 'CenterCrop', 'crop_size': (32, 40)}),
    (dict(type='ResizeEdge', scale=40, interpolation='bicubic'),
     {'type': 'Resize', 'size': [40, -1], 'keep_ratio': True, 'interpolation': 'bicubic'}),
    (dict(type='Resize', scale=(48, 40)),
     {'type': 'Resize', 'size': [48, 40], 'keep_ratio': False})])
def test_steps_of_classifiers_have_the_runtimes_order_of_sizes(step, said):
    assert _classifier_step(step) == said


@pytest.mark.parametrize('step', [
    dict(type='ResizeEdge', scale=40, edge='long'), dict(type='Resize', scale_factor=2),
    dict(type='CenterCrop', crop_size=40, auto_pad=True)])
def test_settings_that_the_runtime_has_not_are_refused(step):
    with pytest.raises(ValueError, match=f"the step '{step['type']}\\("):
        _classifier_step(step)


def test_the_layout_of_a_classifier(tmp_path):
    cfg = Config.fromfile(PROJECT / 'configs/demo/classifier_digits_w4a8.py')
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = build(cfg.model, scope='mmpretrain')
    model.cfg = cfg
    file, = export_onnx(model, tmp_path, shape=(32, 32), layout='mmdeploy')
    image = torch.randn(1, 3, 32, 32)
    found, = session(file.path).run(['output'], {'image': image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image, mode='tensor'), atol=1e-4)
    files = layout_files(model, cfg, 'end2end.onnx', (32, 32))
    last = files['pipeline.json']['pipeline']['tasks'][-1]
    assert files['deploy.json']['task'] == 'Classifier' and last['component'] == 'LinearClsHead'
    assert last['params']['softmax'] is True and last['input'] == ['infer_output']


@pytest.mark.parametrize('options, said', [
    (dict(layout='mmdeploy'), 'add end2end=True'), (dict(layout='tvm'), "layout='tvm'"),
    (dict(layout='mmdeploy', end2end=True, format='int4'), "format='int4'"),
    (dict(layout='mmdeploy', end2end=True, dynamic=True), 'dynamic=True')])
def test_what_the_layout_has_not_is_refused_before_anything_is_written(
        options, said, retinanet, tmp_path):
    with pytest.raises(ValueError, match=said):
        export_onnx(retinanet, tmp_path, shape=SIZE, **options)
    assert not [*tmp_path.iterdir()]


def test_heads_with_a_post_processing_of_their_own_are_refused(retinanet):
    soft = copy.deepcopy(retinanet)
    soft.bbox_head.test_cfg = {**soft.bbox_head.test_cfg, 'nms': dict(type='soft_nms')}
    with pytest.raises(ValueError, match="test_cfg.nms={'type': 'soft_nms'}"):
        check_end_to_end(soft)

    class OwnHead(type(retinanet.bbox_head)):
        def _predict_by_feat_single(self, *args, **kwargs):
            raise NotImplementedError

    own = copy.deepcopy(retinanet)
    own.bbox_head.__class__ = OwnHead
    with pytest.raises(ValueError, match='the head OwnHead; allowed are'):
        check_end_to_end(own)
