"""CIFAR-10 as JPEG files, a folder a class: 2000 training images, 5000 of the test images."""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',  # nothing here trains, a Runner asks for it
]

dataset_type = 'CustomDataset'
data_root = 'data/cifar10_jpeg/'
classes = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],  # RGB; ImageNet's, which these networks were trained with
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='PackInputs'),
]
train_dataloader = dict(  # calibration images come from here
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='calib',
        classes=classes,
        pipeline=test_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='test',
        classes=classes,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
