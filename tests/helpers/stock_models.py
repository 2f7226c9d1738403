"""Stock models of mmpretrain and mmdet, small and with random weights, and a batch for each."""

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

SHAPE = (64, 96)  # of images for detectors, pixels
SMALL_FPN = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
FEW = dict(test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=8),
                         rcnn=dict(score_thr=0.0, max_per_img=4)))
RESNET = dict(type='ResNet', depth=18)
SWIN = dict(type='SwinTransformer', img_size=32, patch_size=2, window_size=4, out_indices=(1,),
            arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]))
VIT = dict(type='VisionTransformer', img_size=32, patch_size=8, arch=dict(
    embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32))
# By name: of classifiers the backbone and its outputs, of detectors a config and what differs.
CLASSIFIERS = {
    'ResNet-18': (RESNET, 512), 'ResNet-50': (dict(RESNET, depth=50), 2048),
    'ResNeXt': (dict(type='ResNeXt', depth=50, groups=32, width_per_group=4), 2048),
    'RegNet': (dict(type='RegNet', arch='regnetx_400mf'), 384),
    'MobileNetV2': (dict(type='MobileNetV2', widen_factor=0.5), 1280),
    'VGG': (dict(type='VGG', depth=13, norm_cfg=dict(type='BN')), 512), 'Swin': (SWIN, 32),
    'ViT': (dict(VIT, out_type='avg_featmap'), 16)}
DETECTORS = {
    'YOLOX': ('yolox/yolox_tiny_8xb8-300e_coco.py', dict(
        backbone=dict(widen_factor=0.125), neck=dict(in_channels=[32, 64, 128], out_channels=32),
        bbox_head=dict(in_channels=32, feat_channels=32))),
    'RetinaNet': ('retinanet/retinanet_r18_fpn_1x_coco.py', {}),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', SMALL_FPN),
    'ATSS': ('atss/atss_r50_fpn_1x_coco.py', SMALL_FPN),
    'Faster R-CNN': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', SMALL_FPN | FEW),
    'Mask R-CNN': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', SMALL_FPN | FEW),
    'RTMDet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', {})}


def build(name: str) -> tuple[nn.Module, Any]:
    """A model in eval mode, and a batch for its test step."""
    torch.manual_seed(0)
    model, batch = (_classifier if name in CLASSIFIERS else _detector)(name)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return revert_sync_batchnorm(model).eval().requires_grad_(False), batch


def _classifier(name: str) -> tuple[nn.Module, Any]:
    init_default_scope('mmpretrain')
    backbone, channels = CLASSIFIERS[name]
    neck = None if name == 'ViT' else dict(type='GlobalAveragePooling')
    model = MODELS.build(dict(
        type='ImageClassifier', backbone=backbone, neck=neck,
        head=dict(type='LinearClsHead', num_classes=5, in_channels=channels),
        data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3)))
    return model, dict(inputs=_images(2, (32, 32)))


def _detector(name: str) -> tuple[nn.Module, Any]:
    init_default_scope('mmdet')
    path, changes = DETECTORS[name]
    cfg = get_config(f'mmdet::{path}')
    cfg.merge_from_dict(dict(model=changes))
    _forget_weights(cfg.model)
    samples = [DetDataSample(metainfo=dict(
        img_id=0, img_shape=SHAPE, ori_shape=SHAPE, pad_shape=SHAPE, batch_input_shape=SHAPE,
        scale_factor=(1.0, 1.0), flip=False))]
    return MODELS.build(cfg.model), dict(inputs=list(_images(1, SHAPE)), data_samples=samples)


def _images(number: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(256, (number, 3, *shape), dtype=torch.uint8)


def _forget_weights(part: Any) -> None:
    if isinstance(part, dict):
        part.pop('init_cfg', None)
        part.pop('pretrained', None)
        for value in part.values():
            _forget_weights(value)
