_base_ = '../mobilenet_v2_w3a3.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
