"""OpenMMLab's layers that pad or transform by themselves are quantized, and compute as before."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmdet.models.layers.normed_predictor import NormedConv2d, NormedLinear
from mmengine.registry import DefaultScope
from torch import nn

from mmbitsplit.models import prepare, watch
from mmbitsplit.planning import make_plan
from mmbitsplit.structures import QuantSpec


def efficientnet():
    from mmpretrain.models import EfficientNet
    return EfficientNet('b0')


def standardized_resnet():
    """As in mmdet's configs/gn+ws."""
    from mmdet.models import ResNet
    with DefaultScope.overwrite_default_scope('mmdet'):
        return ResNet(50, conv_cfg={'type': 'ConvWS'}, norm_cfg={'type': 'GN', 'num_groups': 32})


def adaptively_standardized_resnet():
    """As in mmdet's DetectoRS."""
    from mmdet.models import ResNet
    with DefaultScope.overwrite_default_scope('mmdet'):
        return ResNet(18, conv_cfg={'type': 'ConvAWS'})


def normed_heads():
    return nn.Sequential(NormedConv2d(3, 8, 3, padding=1), nn.ReLU(), NormedConv2d(
        8, 8, 1, norm_over_kernel=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), NormedLinear(8, 5))


@pytest.mark.parametrize('build', [efficientnet, standardized_resnet,
                                   adaptively_standardized_resnet, normed_heads],
                         ids=lambda build: build.__name__)
def test_all_of_a_model_is_quantized_and_computes_as_before(build):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build()
    model.eval()  # some of OpenMMLab's return nothing
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    before, x = copy.deepcopy(model), torch.randn(2, 3, 96, 75)
    flow = watch(model, lambda: model(x))
    ready = prepare(model, flow, make_plan(model, flow, QuantSpec.from_dict({})))
    convolutions = [name for name, module in before.named_modules()
                    if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = [name for name, module in before.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert sorted(ready.layers) == sorted(convolutions)
    assert sorted(ready.folded) == sorted(norms)
    assert ready.plan.kept_float == ()
    if build is efficientnet:
        rules = [layer.geometry.auto_padding for layer in ready.layers.values()]
        assert rules.count('same_upper') == sum(
            isinstance(module, Conv2dAdaptivePadding) and module.stride == (2, 2)
            for module in before.modules()) == 5
    with torch.no_grad():
        for size in ((96, 75), (65, 98)):
            x = torch.randn(1, 3, *size)
            found, expected = (output if isinstance(output, (tuple, list)) else [output]
                               for output in (model(x), before(x)))
            for have, want in zip(found, expected, strict=True):
                torch.testing.assert_close(have, want, rtol=1e-4,
                                           atol=1e-5 * float(want.abs().max()))
