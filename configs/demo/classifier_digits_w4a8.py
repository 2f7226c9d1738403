_base_ = ['./classifier_digits_float.py', '../_base_/quantization_classification.py']

load_from = 'demo/weights/classifier_digits_float.pth'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
