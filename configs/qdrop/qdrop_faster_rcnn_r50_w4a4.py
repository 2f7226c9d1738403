_base_ = '../faster_rcnn_r50_w4a4.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
