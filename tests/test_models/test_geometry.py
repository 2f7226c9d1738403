"""Which layers are known, and whether they do what their class says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.functional import apply_layer
from mmbitsplit.models import layer_geometry, layer_kind
from mmbitsplit.models.layers import geometry as geometry_module
from mmbitsplit.models.layers.geometry import (
    POSITIONS_TO_COMPARE,
    computes_like_torch,
    normalizes_like_torch,
)


class StandardizedConv(nn.Conv2d):
    """Takes the mean out of its weight when called, as BiT and some GroupNorm models do."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation,
                        self.groups)


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


class Deformed(nn.Conv2d):
    """Samples its input half a pixel to the right, as learned offsets would."""

    def forward(self, x):
        return super().forward((x + x.roll(-1, 3)) / 2)


class Gated(nn.Linear):
    """Computes something else for a few of its rows only."""

    def forward(self, x):
        return super().forward(x) * (1 + (x[..., :1] > 1))


LARGE_LAYERS = {
    'conv': lambda cls: cls(6, 8, 3, padding=1), 'stride': lambda cls: cls(6, 8, 3, 2, 1),
    'groups': lambda cls: cls(6, 8, 3, padding=1, groups=2),
    'depthwise': lambda cls: cls(6, 6, 5, padding=2, groups=6),
    'one output': lambda cls: cls(6, 1, 3, padding=1, bias=False)}


@pytest.fixture(params=[(1, 6, 40, 40), (2, 6, 64, 64), (3, 6, 61, 47), (1, 6, 5, 1500)], ids=str)
def large(request):
    """Inputs with more positions than are compared."""
    assert request.param[0] * request.param[2] * request.param[3] > POSITIONS_TO_COMPARE
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('layer', LARGE_LAYERS)
def test_sampled_positions_tell_layers_apart(layer, large):
    with torch.no_grad():
        ordinary = LARGE_LAYERS[layer](OrdinarySubclass)
        output = ordinary(large)
        assert computes_like_torch(ordinary, large, output)
        assert not computes_like_torch(ordinary, large, output + 1e-3)
        for cls in (StandardizedConv, Deformed):
            other = LARGE_LAYERS[layer](cls)
            assert not computes_like_torch(other, large, other(large))
        scaled = output.clone()
        scaled[:, -1] *= 1.01  # one channel of them all
        assert not computes_like_torch(ordinary, large, scaled)


def test_sampled_positions_of_other_kinds():
    x = torch.randn(2, 5, 50, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        module = nn.ConvTranspose2d(5, 4, 4, 2, 1)
        assert computes_like_torch(module, x, module(x))
        assert not computes_like_torch(module, x, module(x.roll(1, 2)))
        rows = x.movedim(1, -1)  # (2, 50, 30, 5)
        module, gated = nn.Linear(5, 4), Gated(5, 4)
        assert computes_like_torch(module, rows, module(rows))
        assert not computes_like_torch(gated, rows, gated(rows))


def test_only_so_many_positions_are_computed_again(large, monkeypatch):
    seen = []
    gather = geometry_module.gather_patches
    monkeypatch.setattr(geometry_module, 'gather_patches', lambda x, positions, geometry: (
        seen.append(positions) or gather(x, positions, geometry)))
    module = nn.Conv2d(6, 8, 3, padding=1)
    assert computes_like_torch(module, large, module(large))
    assert POSITIONS_TO_COMPARE <= len(seen[0]) < 3 * POSITIONS_TO_COMPARE
    assert (seen[0].diff() % 2 == 1).all()  # every column of maps of even width in turn
    assert seen[0][-1] < large[:, 0].numel()
    assert seen[0][-1] > 0.99 * large[:, 0].numel() - 10  # over the whole of all images


@pytest.mark.parametrize('shape', [(2, 6, 64, 64), (1, 6, 5, 1500), (2000, 6), (2, 6, 3000)],
                         ids=str)
def test_norms_of_large_maps_are_told_apart(shape, settle):
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        norm = settle(cls(6))
        output = norm(x)
        assert normalizes_like_torch(norm, x, output)
        assert not normalizes_like_torch(norm, x, output.relu())
        assert not normalizes_like_torch(norm, x, output[..., :-1])
        scaled = output.clone()
        scaled[:, 5] *= 1.01
        assert not normalizes_like_torch(norm, x, scaled)


@pytest.mark.parametrize('shape', [(0, 6, 8, 8), (0, 6)], ids=str)
def test_nothing_at_all_computes_like_torch(shape, settle):
    """A second-stage head without boxes."""
    x = torch.zeros(shape)
    layer = nn.Conv2d(6, 4, 3) if len(shape) == 4 else nn.Linear(6, 4)
    norm = settle(nn.BatchNorm2d(6) if len(shape) == 4 else nn.BatchNorm1d(6))
    assert computes_like_torch(layer, x, layer(x))
    assert normalizes_like_torch(norm, x, norm(x))
