"""Stock detectors of mmdet, tiny and with random weights, whose steps depend on data in jumps."""

import logging
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS

from mmbitsplit.apis import quantize_model
from mmbitsplit.engine.run.presets import replay_points

pytestmark = pytest.mark.slow

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
SIZE = 64
NO_BACKBONE = [{'match': 'backbone.*', 'skip': True}]  # it takes long, and selects nothing


@pytest.fixture
def build():
    """Builds a stock model on a ResNet-18, after a function has changed its config."""
    def of(name: str, change=lambda model: None):
        register_all_modules()
        model = Config.fromfile(CONFIGS / name).model
        model.backbone.update(depth=18, init_cfg=None)
        model.neck.in_channels = [64, 128, 256, 512][-len(model.neck.in_channels):]
        change(model)
        torch.manual_seed(0)
        logging.getLogger('mmengine').setLevel(logging.ERROR)
        built = MODELS.build(model).eval()
        built.init_weights()  # some parameters are memory as it was found
        return built
    return of


@pytest.fixture
def calibrated():
    """Quantizes a detector from random images of one size."""
    def of(model, images=2, **spec):
        sample = DetDataSample(metainfo=dict(
            img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE),
            scale_factor=(1.0, 1.0), batch_input_shape=(SIZE, SIZE), img_id=0))
        torch.manual_seed(0)
        return quantize_model(
            model, [torch.randn(1, 3, SIZE, SIZE) for _ in range(images)],
            {'method': {'type': 'RoundToNearest'}, **spec}, replay_points=replay_points(model),
            run=lambda model, x: model(x, [sample.clone()], mode='predict'))
    return of


def test_panoptic_fusion_is_a_step_that_no_layer_comes_after(build, calibrated):
    """Its masks are not made in calibration, so it cannot run; every layer is quantized."""
    def tiny(model):
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
        model.neck.out_channels = model.rpn_head.in_channels = 16
        model.rpn_head.feat_channels = model.roi_head.bbox_head.fc_out_channels = 16
        model.roi_head.bbox_head.in_channels = model.roi_head.mask_head.in_channels = 16
        model.roi_head.mask_head.conv_out_channels = 16
        model.roi_head.bbox_roi_extractor.out_channels = 16
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.semantic_head.update(in_channels=16, inner_channels=32)  # norms of 32 groups
    model = build('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', tiny)
    report = calibrated(model)
    assert {'roi_head.mask_head.conv_logits', 'semantic_head.conv_logits'} <= {
        layer.name for layer in report.layers}
    # Outside of calibration the model fuses as ever.
    assert 'predict' not in vars(model.panoptic_fusion_head)


def small_transformer(model):
    model.update(num_queries=12)
    model.encoder.num_layers, model.decoder.num_layers = 1, 2
    for part in (model.encoder, model.decoder):
        part.layer_cfg.ffn_cfg.feedforward_channels = 64
    model.test_cfg = dict(max_per_img=10)


TRAINING_ONLY = ('bbox_head.cls_branches.3', 'bbox_head.reg_branches.3.*',
                 'bbox_head.aux_cls_branches.*', 'bbox_head.aux_reg_branches.*')


@pytest.mark.parametrize(('name', 'unused'), [
    ('deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py', ()),
    ('dino/dino-4scale_r50_8xb2-12e_coco.py', ()),
    ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', TRAINING_ONLY)])
def test_what_a_two_stage_transformer_selects_is_replayed(build, calibrated, name, unused):
    """Its decoder is fitted to outputs for the same places of the image."""
    spec = {'overrides': [*NO_BACKBONE, *({'match': pattern, 'skip': True} for pattern in unused)]}
    report = calibrated(build(name, small_transformer), weight={'num_bits': 8}, **spec)
    assert report.selections == []
    first = next(layer for layer in report.layers
                 if layer.name == 'decoder.layers.0.cross_attn.output_proj')
    assert first.error < 0.2  # 1 to 4 where rows of different places are compared


def test_a_detector_that_selects_after_its_last_layer_has_nothing_to_replay(build, calibrated):
    report = calibrated(build('retinanet/retinanet_r50_fpn_1x_coco.py'), overrides=NO_BACKBONE)
    assert report.selections == []


@pytest.mark.parametrize('name', ['cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
                                  'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'])
def test_the_level_of_a_refined_box_is_replayed(build, calibrated, name):
    def tiny(model):
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
        if 'Sparse' not in model.roi_head.type:
            model.test_cfg.rpn.update(nms_pre=20, max_per_img=8)
        else:
            model.rpn_head.num_proposals = 4
            model.roi_head.num_stages, model.roi_head.stage_loss_weights = 2, [1, 1]
            model.roi_head.bbox_head = model.roi_head.bbox_head[:2]
    assert calibrated(build(name, tiny), overrides=NO_BACKBONE).selections == []
