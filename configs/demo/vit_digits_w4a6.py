_base_ = ['./vit_digits_float.py', '../_base_/quantization_classification.py']

load_from = 'demo/weights/vit_digits_float.pth'

# The first 6000 crops of training, which every checkout has: calibration needs no more.
train_dataloader = dict(dataset=dict(data_root='data/digits/'))

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=6))
