"""He et al.'s CIFAR ResNet-20; weights of akamaster/pytorch_resnet_cifar10."""

_base_ = './_base_/cifar10_jpeg.py'

custom_imports = dict(imports=['benchmarks.cifar_classifier'], allow_failed_imports=False)  # PYTHONPATH=.
model = dict(type='CifarResNetClassifier', depth=20)
