"""Rows times gathered patches equal torch's own layers, whatever their geometry."""

import dataclasses
import itertools
import random

import pytest
import torch
from torch import nn

from mmbitsplit.functional import (
    apply_layer,
    channel_dim,
    gather_outputs,
    gather_patches,
    output_size,
    per_input,
    rows_to_weight,
    weight_rows,
)
from mmbitsplit.functional import patches as patches_module
from mmbitsplit.models import layer_geometry

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def random_conv(seed):
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 2, 3])
    pair = lambda *values: (draw.choice(values), draw.choice(values))  # noqa: E731
    return nn.Conv2d(groups * draw.randint(1, 3), groups * draw.randint(1, 3), pair(1, 2, 3, 4),
                     pair(1, 2, 3), pair(0, 1, 2, 5), pair(1, 2, 3), groups)


def random_transposed_conv(seed):
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 2, 3])
    pair = lambda *values: (draw.choice(values), draw.choice(values))  # noqa: E731
    stride, dilation = pair(1, 2, 3), pair(1, 2, 3)
    output_padding = tuple(draw.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    return nn.ConvTranspose2d(
        groups * draw.randint(1, 3), groups * draw.randint(1, 3), pair(1, 2, 3, 4), stride,
        pair(0, 1), output_padding, groups, dilation=dilation)


LAYERS = {
    **{f'conv{seed}': lambda seed=seed: random_conv(seed) for seed in range(12)},
    **{f'transposed{seed}': lambda seed=seed: random_transposed_conv(seed) for seed in range(12)},
    'depthwise': lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=4),
    'depthwise_multiplier': lambda: nn.Conv2d(3, 6, (3, 2), padding=1, groups=3),
    'transposed_depthwise': lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4),
    'transposed_wide_padding': lambda: nn.ConvTranspose2d(2, 3, 3, 1, 2),
    'reflect': lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode='reflect'),
    'replicate': lambda: nn.Conv2d(2, 3, 5, 2, padding=2, padding_mode='replicate'),
    'circular': lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode='circular'),
    'same_even': lambda: nn.Conv2d(2, 3, (4, 2), padding='same'),
    'same_dilated': lambda: nn.Conv2d(2, 3, (2, 3), padding='same', dilation=(3, 2)),
    'same_reflect': lambda: nn.Conv2d(2, 3, (4, 3), padding='same', padding_mode='reflect'),
    'valid': lambda: nn.Conv2d(2, 3, 3, padding='valid'),
    'no_bias': lambda: nn.Conv2d(2, 3, 3, bias=False),
    'linear': lambda: nn.Linear(5, 3),
    'linear_3d': lambda: nn.Linear(5, 3),
}


class Same(nn.Conv2d):
    """As many outputs as there are strides in the input; zeros are added one by one."""

    def __init__(self, *args, lower=False, **options):
        super().__init__(*args, **options)
        self.lower = lower

    def forward(self, x):
        for axis in (0, 1):
            pads, wanted = [0, 0], -(-x.shape[2 + axis] // self.stride[axis])
            spread = self.dilation[axis] * (self.kernel_size[axis] - 1)
            at_end = not self.lower
            while (x.shape[2 + axis] + sum(pads) - spread - 1) // self.stride[axis] + 1 < wanted:
                pads[at_end] += 1
                at_end = not at_end
            x = nn.functional.pad(x, [0, 0, *pads] if axis == 0 else pads)
        return super().forward(x)


SAME = {
    'stride': lambda: Same(4, 6, 3, 2), 'lower': lambda: Same(4, 6, (2, 3), 2, lower=True),
    'dilated': lambda: Same(4, 4, (5, 3), (3, 2), dilation=(1, 2), groups=4),
    'wide_stride': lambda: Same(4, 3, 1, (2, 3)), 'even': lambda: Same(4, 3, 4, 1),
    'even_lower': lambda: Same(4, 3, 4, (1, 4), lower=True)}
LAYERS.update({f'same_{name}': make for name, make in SAME.items()})


@pytest.fixture(params=LAYERS)
def layer(request):
    """(module, geometry, input), all float64; the image is neither square nor a power of two."""
    torch.manual_seed(0)
    module = LAYERS[request.param]().double()
    geometry = layer_geometry(module)
    if isinstance(module, Same):
        geometry = dataclasses.replace(
            geometry, auto_padding='same_lower' if module.lower else 'same_upper')
    shape = {'linear': (7, 5), 'linear_3d': (2, 3, 5)}.get(
        request.param, (2, geometry.in_channels, 9, 11))
    return module, geometry, torch.randn(shape, dtype=torch.float64)


def as_columns(output, geometry):
    """(B, C, H, W) or (..., C) to (C, P)."""
    return output.movedim(channel_dim(geometry), -1).reshape(-1, geometry.out_channels).T


def all_positions(x, geometry):
    return torch.arange(torch.Size(output_size(geometry, x.shape)).numel())


def test_output_size_is_torchs(layer):
    module, geometry, x = layer
    expected = list(module(x).shape)
    del expected[channel_dim(geometry)]
    assert list(output_size(geometry, x.shape)) == expected


def test_rows_times_patches_equal_the_layer_at_every_position(layer):
    module, geometry, x = layer
    patches = gather_patches(x, all_positions(x, geometry), geometry)
    assert patches.shape[:2] == (geometry.groups, geometry.inputs_per_output)
    output = (weight_rows(module.weight, geometry) @ patches).flatten(0, 1)
    if module.bias is not None:
        output = output + module.bias.unsqueeze(1)
    torch.testing.assert_close(output, as_columns(module(x), geometry))


@pytest.mark.parametrize('few', [0, patches_module.FEW, 10 ** 9])
def test_some_positions_are_columns_of_all(layer, few, monkeypatch):
    _, geometry, x = layer
    positions = all_positions(x, geometry)
    every = gather_patches(x, positions, geometry)
    some = torch.randint(len(positions), (13,))  # in no order, with repeats
    monkeypatch.setattr(patches_module, 'FEW', few)
    assert torch.equal(gather_patches(x, some, geometry), every[..., some])


@pytest.mark.parametrize('name', SAME)
def test_padding_by_a_rule_follows_the_size_of_the_input(name):
    torch.manual_seed(0)
    module = SAME[name]().double()
    geometry = dataclasses.replace(
        layer_geometry(module), auto_padding='same_lower' if module.lower else 'same_upper')
    for height, width in itertools.product(range(3, 9), range(4, 11)):
        x = torch.randn(1, 4, height, width, dtype=torch.float64)
        torch.testing.assert_close(
            apply_layer(x, module.weight, module.bias, geometry), module(x))


def test_no_positions_and_no_images_give_no_columns(layer):
    """A second-stage head is called without boxes when an image has none."""
    _, geometry, x = layer
    nothing = torch.zeros(0, dtype=torch.int64)
    for some in (x, x[:0]):
        assert gather_patches(some, nothing, geometry).shape \
            == (geometry.groups, geometry.inputs_per_output, 0)


def test_gathering_leaves_the_input_alone(layer):
    _, geometry, x = layer
    before = x.clone()
    gather_patches(x, all_positions(x, geometry), geometry).zero_()
    assert torch.equal(x, before)


def test_rows_to_weight_inverts_weight_rows(layer):
    module, geometry, _ = layer
    rows = weight_rows(module.weight, geometry)
    assert rows.shape == (geometry.groups, geometry.out_channels // geometry.groups,
                          geometry.inputs_per_output)
    assert torch.equal(rows_to_weight(rows, geometry), module.weight)


def test_row_order_is_the_order_of_output_channels(layer):
    """Doubling one row doubles that channel of the output, nothing else."""
    module, geometry, x = layer
    rows = weight_rows(module.weight, geometry)
    factor = torch.arange(1.0, geometry.out_channels + 1, dtype=torch.float64)
    scaled = rows * factor.view(*rows.shape[:2], 1)
    torch.testing.assert_close(
        as_columns(apply_layer(x, rows_to_weight(scaled, geometry), None, geometry), geometry),
        as_columns(apply_layer(x, module.weight, None, geometry), geometry) * factor.unsqueeze(1))


def test_scaling_input_channels_is_scaling_columns(layer):
    module, geometry, x = layer
    factor = torch.rand(geometry.in_channels, dtype=torch.float64) + 0.5
    shape = [1] * x.dim()
    shape[channel_dim(geometry)] = -1
    rows = weight_rows(module.weight, geometry) * per_input(factor, geometry).unsqueeze(1)
    torch.testing.assert_close(
        apply_layer(x, rows_to_weight(rows, geometry), module.bias, geometry),
        module(x * factor.view(shape)))


def test_one_value_is_spread_over_all_inputs(layer):
    _, geometry, _ = layer
    spread = per_input(torch.tensor([3.0]), geometry)
    assert torch.equal(spread, torch.full((geometry.groups, geometry.inputs_per_output), 3.0))


def test_apply_layer_computes_the_layer(layer):
    module, geometry, x = layer
    assert torch.equal(apply_layer(x, module.weight, module.bias, geometry), module(x))


def test_a_linear_layer_takes_a_single_row():
    module = nn.Linear(5, 3).double()
    geometry, x = layer_geometry(module), torch.randn(5, dtype=torch.float64)
    assert output_size(geometry, x.shape) == ()
    patches = gather_patches(x, torch.tensor([0]), geometry)
    torch.testing.assert_close(weight_rows(module.weight, geometry) @ patches,
                               (module.weight @ x).view(1, 3, 1))


def output_columns(output, geometry):
    """(G, M, P): the outputs as columns, group by group."""
    return as_columns(output, geometry).reshape(
        geometry.groups, geometry.out_channels // geometry.groups, -1)


@pytest.mark.parametrize('images', [0, 1, 2])
def test_gathered_outputs_are_columns_of_the_output(layer, images):
    module, geometry, x = layer
    x = x[:images]
    with torch.no_grad():
        output = module(x) if images else module(torch.zeros(1, *x.shape[1:]).double())[:0]
    positions = all_positions(x, geometry)
    every = gather_outputs(output, positions, geometry)
    assert torch.equal(every, output_columns(output, geometry))
    assert every.is_contiguous()
    assert torch.equal(gather_outputs(output, positions.flip(0), geometry), every.flip(-1))
    if images:
        some = torch.randint(len(positions), (13,))  # in no order, with repeats
        assert torch.equal(gather_outputs(output, some, geometry), every[..., some])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert gather_outputs(output, nothing, geometry).shape == (*every.shape[:2], 0)


@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_gathered_outputs_are_a_copy(layer, images, memory_format):
    """The network may change a layer's output in place right after the call."""
    module, geometry, x = layer
    with torch.no_grad():
        output = module(x[:images])
    if output.dim() == 4:
        output = output.contiguous(memory_format=memory_format)
    positions = all_positions(x[:images], geometry)
    for some in (positions, positions[:1], positions[::2]):
        gathered = gather_outputs(output, some, geometry)
        expected = output_columns(output, geometry)[..., some].clone()
        output.add_(1).relu_()
        assert torch.equal(gathered, expected)
        before = output.clone()
        gathered.zero_()
        assert torch.equal(output, before)


def test_gathered_outputs_belong_to_the_gathered_patches(layer):
    module, geometry, x = layer
    with torch.no_grad():
        output = module(x)
        some = torch.randint(len(all_positions(x, geometry)), (9,))
        expected = weight_rows(module.weight, geometry) @ gather_patches(x, some, geometry)
        if module.bias is not None:
            expected += module.bias.view(geometry.groups, -1, 1)
        torch.testing.assert_close(gather_outputs(output, some, geometry), expected)


def test_outputs_of_a_linear_layer_with_a_single_row():
    module = nn.Linear(5, 3).double()
    output = module(torch.randn(5, dtype=torch.float64)).detach()
    gathered = gather_outputs(output, torch.tensor([0]), layer_geometry(module))
    assert torch.equal(gathered, output.view(1, 3, 1))
    output.zero_()
    assert gathered.all()
