_base_ = '../faster_rcnn_r50_w2a4.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
