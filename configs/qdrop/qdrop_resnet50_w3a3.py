_base_ = '../resnet50_w3a3.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
