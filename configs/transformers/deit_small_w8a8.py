_base_ = [
    'mmpretrain::deit/deit-small_4xb256_in1k.py',
    '../_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'

quantization = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
