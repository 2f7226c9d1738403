_base_ = [
    'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py',
    '../_base_/quantization_classification.py',
]

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth'

quantization = dict(weight=dict(num_bits=6), activation=dict(num_bits=6))
