_base_ = [
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    './_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'

quantization = dict(weight=dict(num_bits=2), activation=dict(num_bits=4))
