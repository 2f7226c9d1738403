_base_ = '../regnetx_3_2gf_w3a3.py'

quantization = dict(method=dict(type='QDrop'), activation=dict(placement='qdrop'))
