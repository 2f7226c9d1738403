"""A narrow CIFAR-style ResNet-18 (16 to 128 channels) for 32x32 crops of single digits."""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    './_base_/digits_classification.py',
    './_base_/schedule.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=4,
        out_indices=(3,),
        style='pytorch',
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
