# Quantization of detectors. Their images differ in size, so they are calibrated one by one.
_base_ = './quantization.py'

quantization = dict(calibration=dict(num_images=32, batch_size=1, seed=0))
