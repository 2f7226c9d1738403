# Quantization of classifiers: small images, all of one size, few sampled positions in each.
_base_ = './quantization.py'

quantization = dict(calibration=dict(num_images=1024, batch_size=32, seed=0))
