"""Which layers are known, and whether they do what their class says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.functional import apply_layer
from mmbitsplit.models import layer_geometry, layer_kind
from mmbitsplit.models.geometry import computes_like_torch, normalizes_like_torch


class StandardizedConv(nn.Conv2d):
    """Takes the mean out of its weight when called, as BiT and some GroupNorm models do."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class OrdinarySubclass(nn.Conv2d):
    pass


class NormWithActivation(nn.BatchNorm2d):

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(('module', 'kind'), [
    (nn.Conv2d(1, 1, 1), 'conv2d'), (OrdinarySubclass(1, 1, 1), 'conv2d'),
    (nn.ConvTranspose2d(1, 1, 1), 'conv_transpose2d'), (nn.Linear(1, 1), 'linear'),
    (nn.Conv1d(1, 1, 1), None), (nn.Conv3d(1, 1, 1), None), (nn.ConvTranspose1d(1, 1, 1), None),
    (nn.Embedding(1, 1), None), (nn.BatchNorm2d(1), None), (nn.Bilinear(1, 1, 1), None),
    (nn.MultiheadAttention(2, 1).out_proj, None)], ids=lambda value: type(value).__name__)
def test_kinds(module, kind):
    assert layer_kind(module) == kind
    if kind is None:
        with pytest.raises(ValueError, match=f'{type(module).__name__}.*Conv2d, .*Linear'):
            layer_geometry(module)


def test_geometry_is_the_modules():
    module = nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 0), (1, 2), groups=2)
    geometry = layer_geometry(module)
    assert (geometry.in_channels, geometry.out_channels, geometry.groups) == (4, 6, 2)
    assert (geometry.kernel_size, geometry.stride) == ((3, 5), (2, 1))
    assert (geometry.padding, geometry.dilation) == ((1, 0), (1, 2))
    assert geometry.pre_padding == (0, 0, 0, 0)
    transposed = layer_geometry(nn.ConvTranspose2d(4, 6, 3, 2, 1, (1, 0), groups=2, dilation=2))
    assert (transposed.output_padding, transposed.dilation) == ((1, 0), (2, 2))
    assert (layer_geometry(nn.Linear(4, 6)).in_channels, transposed.weight_shape) \
        == (4, (4, 3, 3, 3))


@pytest.mark.parametrize('options', [
    {'padding': 'same'}, {'padding': 'same', 'dilation': 2}, {'padding': 'valid'},
    {'padding': (1, 2), 'padding_mode': 'reflect'}, {'padding': 1, 'padding_mode': 'circular'}],
    ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_paddings_that_torch_does_by_itself(options, image):
    module = nn.Conv2d(3, 4, (4, 3), **options)
    output = module(image)
    geometry = layer_geometry(module)
    torch.testing.assert_close(apply_layer(image, module.weight, module.bias, geometry), output)
    assert geometry.padding == (0, 0)
    assert computes_like_torch(module, image, output)


@pytest.mark.parametrize('module', [
    nn.Conv2d(3, 4, 3), OrdinarySubclass(3, 4, 3), nn.ConvTranspose2d(3, 4, 3), nn.Linear(12, 5)],
    ids=lambda module: type(module).__name__)
def test_ordinary_layers_compute_like_torch(module, image):
    assert computes_like_torch(module, image, module(image))


def test_layers_that_compute_something_else_are_told(image):
    standardized = StandardizedConv(3, 4, 3)
    assert not computes_like_torch(standardized, image, standardized(image))
    module = nn.Conv2d(3, 4, 3, padding=1)
    output = module(image)
    assert not computes_like_torch(module, image, output.relu())
    assert not computes_like_torch(module, image, output + 1e-3)
    assert not computes_like_torch(module, image, output[..., :-1])


def test_norms_that_compute_something_else_are_told(image, settle):
    plain, active = settle(nn.BatchNorm2d(3)), settle(NormWithActivation(3))
    assert normalizes_like_torch(plain, image, plain(image))
    assert not normalizes_like_torch(active, image, active(image))
    assert not normalizes_like_torch(plain.train(), image, plain.eval()(image) + 1)
    without = nn.BatchNorm2d(3, track_running_stats=False).eval()
    assert not normalizes_like_torch(without, image, without(image))
