_base_ = ['./mask_rcnn_digits_float.py', '../_base_/quantization_detection.py']

load_from = 'demo/weights/mask_rcnn_digits_float.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
