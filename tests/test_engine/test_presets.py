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
from mmbitsplit.engine.presets import replay_points

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
SIZE = 64


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
        return MODELS.build(model).eval()
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
