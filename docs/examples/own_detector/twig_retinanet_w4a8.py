"""The same, quantized."""

_base_ = ['./twig_retinanet.py', '../../../configs/_base_/quantization_detection.py']

load_from = 'work_dirs/twig/twig.pth'

quantization = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=8),
    calibration=dict(num_images=128))
