_base_ = ['./_base_/cifar10_jpeg.py', '../_base_/quantization_classification.py']

custom_imports = dict(imports=['benchmarks.cifar_classifier'])  # PYTHONPATH=.
model = dict(type='CifarResNetClassifier', depth=56)
load_from = 'data/cifar10_jpeg/resnet56-4bfd9763.th'

quantization = dict(weight=dict(num_bits=4), activation=dict(num_bits=8))
