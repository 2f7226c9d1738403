_base_ = '../mobilenet_v2_w2a4.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
