"""Made-up images: of the size that a test pipeline makes, unlike each other."""

import pytest
import torch
from mmengine.config import Config

from mmbitsplit.engine.configs.upstream_configs import find_upstream
from mmbitsplit.engine.data.synthetic_images import (
    make_images,
    reach_all_stages,
    synthetic_batches,
)


@pytest.mark.parametrize(('name', 'shape'), [
    ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', (3, 416, 416)),
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (3, 800, 1333)),
    ('mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', (3, 255, 255)),
    ('mmpretrain::lenet/lenet5_mnist.py', (1, 32, 32)),
    ('mmpretrain::resnet/resnet18_8xb32_in1k.py', (3, 224, 224)),
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', (3, 224, 224))])
def test_an_image_is_as_the_test_pipeline_makes_it(name, shape):
    pytest.importorskip(name.partition('::')[0])
    batches = synthetic_batches(Config.fromfile(find_upstream(name)), 2, 3)
    assert [len(batch['inputs']) for batch in batches] == [3, 3]
    for batch in batches:
        assert all(tuple(image.shape) == shape for image in batch['inputs'])
        for sample in batch.get('data_samples', ()):
            assert sample.img_shape == shape[1:]


def test_a_shape_can_be_given():
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(find_upstream('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'))
    first, second = synthetic_batches(cfg, 2, 1, (32, 40))
    assert first['inputs'][0].shape == (3, 32, 40)
    assert not torch.equal(first['inputs'][0], second['inputs'][0])


def test_images_differ():
    images = make_images(3, 3, (32, 40), torch.Generator().manual_seed(0))
    assert images.shape == (3, 3, 32, 40) and images.dtype == torch.uint8
    assert images.float().mean((2, 3)).std(0).min() > 5


def test_proposals_are_few():
    cfg = dict(test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(x=1)), rcnn=dict(
        max_per_img=100, score_thr=0.05)))
    reach_all_stages(cfg)
    assert cfg['test_cfg'] == dict(rpn=dict(nms_pre=100, max_per_img=20, nms=dict(x=1)),
                                   rcnn=dict(max_per_img=10, score_thr=0.0))
