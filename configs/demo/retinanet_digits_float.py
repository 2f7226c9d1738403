"""A narrow RetinaNet (ResNet-18 with 24 channels, FPN with 48) for the demo scenes."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/digits_detection.py',
    './_base_/schedule.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=24,
        stem_channels=24,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[24, 48, 96, 192],
        out_channels=48,
        add_extra_convs=False,
        num_outs=3,
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        anchor_generator=dict(  # sides 18 to 114 pixels, digits are taller than wide
            octave_base_scale=2.25,
            ratios=[1.0, 1.6, 2.4],
            strides=[8, 16, 32],
        ),
        reg_decoded_bbox=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
)
randomness = dict(seed=0)
