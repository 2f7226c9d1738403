_base_ = '../regnetx_3_2gf_w2a4.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
