_base_ = ['./retinanet_digits_float.py', '../_base_/quantization_detection.py']

load_from = 'demo/weights/retinanet_digits_float.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
