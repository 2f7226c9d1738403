_base_ = '../resnet18_w4a4.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
