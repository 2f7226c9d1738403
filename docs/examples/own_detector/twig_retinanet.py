"""Your detector as it was trained: mmdet's RetinaNet on a backbone of your own."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../../../configs/demo/_base_/digits_detection.py',
    '../../../configs/demo/_base_/schedule.py',
]
custom_imports = dict(imports=['twig_net'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='TwigNet', channels=(24, 48, 96, 128)),
    neck=dict(in_channels=[48, 96, 128], start_level=0, out_channels=48,
              add_extra_convs=False, num_outs=3),
    bbox_head=dict(
        num_classes=10, in_channels=48, feat_channels=48, stacked_convs=2,
        anchor_generator=dict(octave_base_scale=4.5, ratios=[1.0, 1.6, 2.4],
                              strides=[4, 8, 16])))
