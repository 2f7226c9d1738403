"""Channels last in memory only where no compiled operator reads maps as if channels came first."""

import pytest
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn

from mmbitsplit.engine.run.map_order import may_be_channels_last

MAY = {'retinanet/retinanet_r50_fpn_1x_coco': True, 'ssd/ssd300_coco': True,
       'tood/tood_r50_fpn_1x_coco': False,  # deform_conv2d, a function
       'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': False}  # RoIAlign, a module


@pytest.mark.parametrize('name', MAY)
def test_detectors(name):
    cfg = get_config(f'mmdet::{name}.py')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert may_be_channels_last(model) == MAY[name]
    model.neck.other = nn.Module()
    assert may_be_channels_last(model) == MAY[name]
    model.neck.other = type('Own', (nn.Module,), {'__module__': __name__})()
    assert not may_be_channels_last(model)


def test_other_models():
    assert not may_be_channels_last(nn.Sequential(nn.Conv2d(1, 1, 1)))
