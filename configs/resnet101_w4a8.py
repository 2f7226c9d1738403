_base_ = [
    'mmpretrain::resnet/resnet101_8xb32_in1k.py',
    './_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet101_8xb32_in1k_20210831-539c63f8.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
