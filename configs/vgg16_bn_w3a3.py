_base_ = [
    'mmpretrain::vgg/vgg16bn_8xb32_in1k.py',
    './_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'

quantization = dict(weight=dict(num_bits=3), activation=dict(num_bits=3))
