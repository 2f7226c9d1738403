_base_ = [
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    './_base_/quantization_detection.py',
]

load_from = 'https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_s_8xb32-300e_coco/rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
