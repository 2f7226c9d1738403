"""The request of a config that has none is that of our bases for its task."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmbitsplit.engine.configs.default_request import (
    CLASSIFICATION,
    DETECTION,
    INSTANCES,
    PANOPTIC,
    fill_request,
    task_of,
)
from mmbitsplit.engine.configs.upstream_configs import find_upstream
from mmbitsplit.engine.run.quantize import read_spec

BASES = Path(__file__).resolve().parents[2] / 'configs' / '_base_'
TASKS = [('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', DETECTION),
         ('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', INSTANCES),
         ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', INSTANCES),
         ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', PANOPTIC),
         ('mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py', DETECTION),
         ('mmpretrain::resnet/resnet18_8xb32_in1k.py', CLASSIFICATION),
         ('mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py', CLASSIFICATION)]


def read(name: str) -> Config:
    return Config.fromfile(find_upstream(name))


@pytest.mark.parametrize('name, task', TASKS)
def test_the_task_is_seen_from_the_config(name, task):
    pytest.importorskip(name.split('::')[0])
    assert task_of(read(name)) == task


@pytest.mark.parametrize('name, task', TASKS[:1] + TASKS[-1:])
def test_the_request_is_that_of_the_base(name, task):
    pytest.importorskip(name.split('::')[0])
    base = 'classification' if task == CLASSIFICATION else 'detection'
    cfg, ours = read(name), Config.fromfile(BASES / f'quantization_{base}.py')
    assert fill_request(cfg) == task
    assert cfg.quantization.to_dict() == ours.quantization.to_dict()
    assert read_spec(cfg) == read_spec(ours)
    cfg.quantization.calibration.num_images = 5
    again = read(name)
    fill_request(again)
    assert again.quantization.calibration.num_images != 5


def test_a_request_of_one_s_own_stays():
    cfg = Config(dict(model=dict(type='Unknown'), quantization=dict(weight=dict(num_bits=3))))
    assert fill_request(cfg) is None and cfg.quantization == dict(weight=dict(num_bits=3))


@pytest.mark.parametrize('cfg, message', [
    (dict(model=dict(type='mmengine.model.BaseModel')), 'What BaseModel is for cannot be told'),
    (dict(model=dict(type='mmdet.FCOSS'), default_scope='mmdet'), "did you mean 'FCOS'"),
    (dict(model=dict(type='FCOSS'), default_scope='mmdet'), "did you mean 'FCOS'"),
    (dict(model=dict(backbone=3)), 'model.type=None names no class'),
    (dict(model=dict(type='FCOS'), quantisation={}), "but 'quantisation'; rename it")])
def test_a_task_that_cannot_be_told(cfg, message):
    pytest.importorskip('mmdet')
    with pytest.raises(ValueError, match=message):
        fill_request(Config(cfg))
