_base_ = [
    'mmpretrain::deit/deit-base_16xb64_in1k.py',
    '../_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/deit/deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=4))
