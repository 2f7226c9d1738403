_base_ = '../mobilenet_v2_w3a3.py'

quantization = dict(
    method=dict(type='QDrop', regularization=0.1),  # as published for MobileNetV2
    activation=dict(placement='qdrop'))
