_base_ = ['./_base_/cifar10_jpeg.py', '../_base_/quantization_classification.py']

custom_imports = dict(imports=['benchmarks.cifar_classifier'])  # PYTHONPATH=.
model = dict(type='CifarResNetClassifier', depth=20)
load_from = 'data/cifar10_jpeg/resnet20-12fca82f.th'

quantization = dict(weight=dict(num_bits=3), activation=dict(num_bits=3))
