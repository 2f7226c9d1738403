"""A small vision transformer (64 channels, 4 blocks of 4 heads) for 32x32 crops of single digits.

16 tokens of 8x8 pixels, from a stem of convolutions, and a class token. It trains on ten times as
many crops as the convolutional classifier.
"""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    './_base_/digits_classification.py',
    './_base_/schedule.py',
]

custom_imports = dict(imports=['demo.conv_stem'], allow_failed_imports=False)  # PYTHONPATH=.

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=8,
        patch_cfg=dict(conv_type='ConvStem'),
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
        init_cfg=dict(type='Normal', layer='Linear', std=0.02),
    ),
)

# python tools/make_demo_data.py --out data/digits_many --num-train 1 --num-val 1
#     --num-cls-train 60000 --num-cls-val 10
train_pipeline = [  # no shifts: there are enough crops, and they stand off centre already
    dict(type='LoadImageFromFile'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(data_root='data/digits_many/', pipeline=train_pipeline))

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=0.001, betas=(0.9, 0.99)), clip_grad=dict(max_norm=1.0))
randomness = dict(seed=0)
