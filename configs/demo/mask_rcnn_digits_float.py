"""A narrow Mask R-CNN (ResNet-18 with 20 channels, FPN with 48, 28x28 masks) for the scenes."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/digits_instance.py',
    './_base_/schedule.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=20,
        stem_channels=20,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[20, 40, 80, 160], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(  # sides 14, 28, 56 and 112 pixels, digits are taller than wide
            scales=[3.5], ratios=[1.0, 1.6, 2.4], strides=[4, 8, 16, 32]
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, featmap_strides=[4, 8, 16], finest_scale=24),
        bbox_head=dict(in_channels=48, fc_out_channels=160, num_classes=10),
        mask_roi_extractor=dict(out_channels=48, featmap_strides=[4, 8, 16], finest_scale=24),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.25)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(max_per_img=50),
    ),
)

max_epochs = 7
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
randomness = dict(seed=0)
