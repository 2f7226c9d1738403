_base_ = [
    'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py',
    './_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/regnet/regnetx-3.2gf_8xb64_in1k_20211213-1fdd82ae.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
