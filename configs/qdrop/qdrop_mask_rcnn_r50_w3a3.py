_base_ = '../mask_rcnn_r50_w3a3.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
