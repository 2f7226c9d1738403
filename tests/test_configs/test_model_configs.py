"""The configs for published models: upstream's config, plus a quantization part, nothing else."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

# Found, not imported: the packages' config files are all that is needed.
for package in ('mmengine', 'mmdet', 'mmpretrain'):
    if find_spec(package) is None:
        pytest.skip(f'{package} is not installed', allow_module_level=True)

import yaml  # noqa: E402  (comes with mmengine)
from mmengine.config import Config  # noqa: E402

from mmbitsplit.calibration import read_request  # noqa: E402

CONFIG_DIR = Path(__file__).resolve().parents[2] / 'configs'
OUR_KEYS = {'runner_type', 'quantization', 'load_from'}

UPSTREAM = {
    'retinanet_r50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mask_rcnn_r50': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'faster_rcnn_r50': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mobilenet_v2': 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'regnetx_3_2gf': 'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py',
    'resnet18': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'resnet50': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'resnet101': 'mmpretrain::resnet/resnet101_8xb32_in1k.py',
    'vgg16_bn': 'mmpretrain::vgg/vgg16bn_8xb32_in1k.py',
    'rtmdet_s': 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
}
TRANSFORMERS = {
    'vit_base_p16_384px': 'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py',
    'deit_tiny': 'mmpretrain::deit/deit-tiny_4xb256_in1k.py',
    'deit_small': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'deit_base': 'mmpretrain::deit/deit-base_16xb64_in1k.py',
    'swin_tiny': 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'swin_small': 'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py',
    'detr_r50': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'deformable_detr_r50': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino_r50': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former_r50': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mask_rcnn_swin_t': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
}
DETECTORS = ('retinanet_r50', 'mask_rcnn_r50', 'faster_rcnn_r50', 'rtmdet_s')
LOW_BITS = ('w4a4', 'w3a3', 'w2a4')
# Of the paper's tables, and those that learned rounding is compared on.
OF_THE_PAPER = {'resnet18', 'resnet50', 'resnet101', 'vgg16_bn'}
COMPARED = [model for model in UPSTREAM if model not in ('resnet101', 'vgg16_bn', 'rtmdet_s')]
NAMES = sorted({f'{model}_w4a8' for model in ('retinanet_r50', 'mask_rcnn_r50', 'rtmdet_s')}
               | {'rtmdet_s_w8a8'}
               | {f'{model}_{bits}' for model in ('mobilenet_v2', 'regnetx_3_2gf')
                  for bits in ('w8a8', 'w4a8', 'w6a6', 'w4a6')}
               | {f'{model}_{bits}' for model in OF_THE_PAPER
                  for bits in ('w8a8', 'w4a8', 'w4a4', 'w3a3')}
               | {f'{model}_{bits}' for model in COMPARED for bits in LOW_BITS})
QDROP_NAMES = [f'qdrop_{model}_{bits}' for model in COMPARED for bits in LOW_BITS]


def split_name(name):
    """`resnet18_w4a8` as ('resnet18', 4, 8)."""
    found = re.fullmatch(r'(\w+)_w(\d)a(\d)', name)
    return found[1], int(found[2]), int(found[3])


@cache
def load(name):
    """Load one of our configs; its custom imports need the engine and are left alone."""
    return Config.fromfile(CONFIG_DIR / f'{name}.py', import_custom_modules=False)


@cache
def load_upstream(reference):
    """Load `package::path` the way `_base_` does."""
    package, path = reference.split('::')
    return Config.fromfile(upstream_room(package) / 'configs' / path, import_custom_modules=False)


def upstream_room(package):
    """The folder where an installed OpenMMLab package keeps its configs and metafiles."""
    return Path(find_spec(package).origin).parent / '.mim'


def published_weights(reference):
    """The checkpoints that the installed package's own metafile names for a config."""
    package, path = reference.split('::')
    room = upstream_room(package)
    metafile = room / 'configs' / Path(path).parent / 'metafile.yml'
    models = yaml.safe_load(metafile.read_text(encoding='utf-8'))['Models']
    return {model['Weights'] for model in models if model['Config'] == f'configs/{path}'}


def test_the_promised_configs_are_there_and_no_others():
    assert sorted(path.stem for path in CONFIG_DIR.glob('*.py')) == sorted(NAMES)


def without_scope(node, package):
    """A config without the `_scope_` mmengine adds to all that is inherited from a package."""
    if isinstance(node, dict):
        assert node.get('_scope_', package) == package
        return {key: without_scope(value, package) for key, value in node.items()
                if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [without_scope(value, package) for value in node]
    return node


@pytest.mark.parametrize('name', NAMES)
def test_everything_but_quantization_is_upstream(name):
    check_like_upstream(name, UPSTREAM[split_name(name)[0]])


def check_like_upstream(name, reference):
    package = reference.split('::')[0]
    ours = without_scope(load(name).to_dict(), package)
    upstream = without_scope(load_upstream(reference).to_dict(), package)
    assert ours['default_scope'] == package
    for key in OUR_KEYS:
        ours.pop(key, None)
        upstream.pop(key, None)
    assert ours == upstream


@pytest.mark.parametrize('name', NAMES)
def test_upstream_s_tools_quantize_with_it(name):
    assert load(name).runner_type == 'mmbitsplit.QuantizationRunner'


@pytest.mark.parametrize('name', NAMES)
def test_bits_are_those_of_the_file_name(name):
    quantization = load(name).quantization
    _, weight_bits, activation_bits = split_name(name)
    assert quantization.weight == dict(num_bits=weight_bits)
    assert quantization.activation == dict(num_bits=activation_bits)
    assert quantization.method == dict(type='BitSplit')
    assert quantization.overrides == []


@pytest.mark.parametrize('name', NAMES)
def test_calibration_fits_the_task(name):
    is_detector = split_name(name)[0] in DETECTORS
    assert load(name).quantization.calibration == dict(
        num_images=32 if is_detector else 1024, batch_size=1 if is_detector else 32, seed=0)


@pytest.mark.parametrize('name', NAMES)
def test_weights_are_those_of_the_installed_metafile(name):
    assert {load(name).load_from} == published_weights(UPSTREAM[split_name(name)[0]])


def test_the_qdrop_configs_are_there_and_no_others():
    assert sorted(path.stem for path in (CONFIG_DIR / 'qdrop').glob('*.py')) == sorted(QDROP_NAMES)


@pytest.mark.parametrize('name', QDROP_NAMES)
def test_a_qdrop_config_is_ours_with_its_method_and_placement(name):
    ours = load(name.removeprefix('qdrop_')).to_dict()
    qdrop = load(f'qdrop/{name}').to_dict()
    method = qdrop['quantization'].pop('method')
    assert method.pop('type') == 'QDrop'
    assert method == ({'regularization': 0.1} if 'mobilenet' in name else {})
    assert qdrop['quantization']['activation'].pop('placement') == 'qdrop'
    assert ours['quantization'].pop('method') == {'type': 'BitSplit'}
    assert qdrop == ours
    spec = read_request(load(f'qdrop/{name}').quantization.to_dict())
    assert (spec.activation.mode, spec.activation.placement) == ('per_tensor', 'qdrop')


def test_the_transformers_configs_are_there_and_no_others():
    assert sorted(path.stem for path in (CONFIG_DIR / 'transformers').glob('*.py')) == sorted(
        f'{model}_{bits}' for model, reference in TRANSFORMERS.items()
        for bits in ('w8a8', 'w4a8') + (
            () if reference.startswith('mmdet') else ('w6a6', 'w4a6', 'w4a4')))


@pytest.mark.parametrize('model', TRANSFORMERS)
def test_configs_of_a_transformer_differ_in_bits_alone(model):
    """One is compared with upstream's whole; the others are the same text with other bits."""
    reference, name = TRANSFORMERS[model], f'transformers/{model}_w4a8'
    check_like_upstream(name, reference)
    assert load(name).load_from in published_weights(reference)
    assert load(name).quantization.calibration.batch_size == (
        1 if reference.startswith('mmdet') else 32)
    text = (CONFIG_DIR / f'{name}.py').read_text()
    for path in (CONFIG_DIR / 'transformers').glob(f'{model}_w?a?.py'):
        _, weight, activation = split_name(path.stem)
        assert path.read_text() == text.replace(
            'weight=dict(num_bits=4), activation=dict(num_bits=8)',
            f'weight=dict(num_bits={weight}), activation=dict(num_bits={activation})')
