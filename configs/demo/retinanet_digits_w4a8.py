_base_ = ['./retinanet_digits_float.py', '../_base_/quantization_detection.py']

load_from = 'demo/weights/retinanet_digits_float.pth'

# The scenes are small, so that 128 of them give as many positions as a few photographs.
quantization = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=8),
    calibration=dict(num_images=128))
