"""The models of the bench: configs, the data they need, what the paper calls them."""

import os.path as osp
from dataclasses import dataclass

from mmbitsplit.spelling import nearest

# What a data folder must hold to be taken for one of these.
DATA_KINDS = {
    'cifar': ('calib', 'test'),
    'coco': ('train2017', 'val2017', 'annotations/instances_val2017.json'),
    'digits': ('cls_train', 'cls_val', 'annotations/instances_val.json'),
    'imagenet': ('train', 'val'),  # after the digits, which have folders of these names too
}
AT_HAND = 'digits'  # made by `make data`


@dataclass(frozen=True)
class BenchModel:
    """A model that a table can be made for.

    Args:
        name: For the command line and folders.
        label: For tables.
        config: Path of a quantization config; its bits and method are replaced by the cell's.
        data: Key of ``DATA_KINDS``, ``None`` where it is not known (a config of the user's).
        detector: Whether it belongs into Table 5; ``None`` where it is not known.
        paper: What the paper's tables call it, where its data are the same too.
    """

    name: str
    label: str
    config: str
    data: str | None = None
    detector: bool | None = None
    paper: str | None = None


BENCH_MODELS = {model.name: model for model in (
    BenchModel('classifier', 'Demo classifier', 'configs/demo/classifier_digits_w4a8.py',
               'digits', False),
    BenchModel('retinanet', 'Demo RetinaNet', 'configs/demo/retinanet_digits_w4a8.py',
               'digits', True),
    BenchModel('mask_rcnn', 'Demo Mask R-CNN', 'configs/demo/mask_rcnn_digits_w4a8.py',
               'digits', True),
    BenchModel('resnet20', 'CIFAR ResNet-20', 'configs/cifar/resnet20_cifar10_w4a8.py',
               'cifar', False),
    BenchModel('resnet56', 'CIFAR ResNet-56', 'configs/cifar/resnet56_cifar10_w4a8.py',
               'cifar', False),
    BenchModel('resnet18', 'ResNet-18', 'configs/resnet18_w4a8.py', 'imagenet', False,
               'ResNet-18'),
    BenchModel('resnet50', 'ResNet-50', 'configs/resnet50_w4a8.py', 'imagenet', False,
               'ResNet-50'),
    BenchModel('resnet101', 'ResNet-101', 'configs/resnet101_w4a8.py', 'imagenet', False,
               'ResNet-101'),
    BenchModel('vgg16_bn', 'VGG-16-BN', 'configs/vgg16_bn_w4a8.py', 'imagenet', False,
               'VGG-16-BN'),
    BenchModel('mobilenet_v2', 'MobileNetV2', 'configs/mobilenet_v2_w4a4.py', 'imagenet', False),
    BenchModel('regnetx_3_2gf', 'RegNetX-3.2GF', 'configs/regnetx_3_2gf_w4a4.py', 'imagenet',
               False),
    BenchModel('faster_rcnn_r50', 'Faster R-CNN R50', 'configs/faster_rcnn_r50_w4a4.py', 'coco',
               True),
    BenchModel('retinanet_r50', 'RetinaNet R50', 'configs/retinanet_r50_w4a8.py', 'coco', True,
               'RetinaNet'),
    BenchModel('mask_rcnn_r50', 'Mask R-CNN R50', 'configs/mask_rcnn_r50_w4a8.py', 'coco', True,
               'Mask R-CNN'),
)}

# With configs of their own in the zoo, and in no table: paths of configs bring them into one.
ZOO_MODELS = (
    BenchModel('vit_digits', 'Demo ViT', 'configs/demo/vit_digits_w4a6.py', 'digits', False),
    BenchModel('rtmdet_s', 'RTMDet-s', 'configs/rtmdet_s_w4a8.py', 'coco', True),
    *(BenchModel(name, label, f'configs/transformers/{name}_w4a8.py', 'imagenet', False)
      for name, label in (('vit_base_p16_384px', 'ViT-B/16 at 384'), ('deit_tiny', 'DeiT-T'),
                          ('deit_small', 'DeiT-S'), ('deit_base', 'DeiT-B'),
                          ('swin_tiny', 'Swin-T'), ('swin_small', 'Swin-S'))),
    *(BenchModel(name, label, f'configs/transformers/{name}_w4a8.py', 'coco', True)
      for name, label in (('detr_r50', 'DETR R50'), ('deformable_detr_r50', 'Deformable DETR R50'),
                          ('dino_r50', 'DINO R50'), ('mask2former_r50', 'Mask2Former R50'),
                          ('mask_rcnn_swin_t', 'Mask R-CNN Swin-T'))),
)


def bench_model(name: str) -> BenchModel:
    """Returns a model by its name, or one for the path of a quantization config.

    Raises:
        ValueError: There is none of that name; names the nearest.
    """
    if name.endswith('.py'):
        stem = osp.splitext(osp.basename(name))[0]
        return BenchModel(stem, stem, name)
    if name not in BENCH_MODELS:
        raise ValueError(f"model '{name}' is not known; {nearest(name, BENCH_MODELS)}, or the "
                         'path of a quantization config.')
    return BENCH_MODELS[name]


def data_kind(folder: str) -> str:
    """Tells which data set a folder holds by the names in it.

    Raises:
        ValueError: It is none of ``DATA_KINDS``.
    """
    for kind, names in DATA_KINDS.items():
        if all(osp.exists(osp.join(folder, name)) for name in names):
            return kind
    known = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in DATA_KINDS.items())
    raise ValueError(f'data={folder!r} holds none of the known data sets. A folder is known by '
                     f'what lies in it ({known}).')
