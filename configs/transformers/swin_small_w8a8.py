_base_ = [
    'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py',
    '../_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/swin_small_224_b16x64_300e_imagenet_20210615_110219-7f9d988b.pth'

quantization = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
