"""Surgery: the model computes as before, and a checkpoint finds its way back."""

import copy
import io
import json

import pytest
import torch
from torch import nn

from mmbitsplit.functional import (
    add_ridge,
    gather_patches,
    layer_statistics,
    solve_bitsplit,
    weight_rows,
)
from mmbitsplit.models import QuantizedLayer, describe, layer_geometry, quantized_layers, rebuild


def build(make_net):
    """All three kinds, two batch norms to fold, a residual, a head called twice."""
    def run(net, x):
        x = net.norm(net.stem(x)).relu()
        x = x + net.body(x)
        x = net.up_norm(net.up(x)).relu()
        return net.head(x.mean((2, 3))), net.head(x.amax((2, 3)))
    return make_net(
        run, stem=nn.Conv2d(3, 4, 3, 2, 1, bias=False), norm=nn.BatchNorm2d(4),
        body=nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU()),
        up=nn.ConvTranspose2d(4, 6, 2, 2, groups=2), up_norm=nn.BatchNorm2d(6),
        head=nn.Linear(6, 5))


def test_preparing_folds_and_computes_as_before(make_net, make_ready, image):
    net = build(make_net)
    before = net(image)
    ready = make_ready(net, image)
    assert [layer.name for layer in ready.plan.layers] == ['stem', 'body.0', 'up', 'head']
    assert ready.folded == {'norm': 'stem', 'up_norm': 'up'}
    assert dict(quantized_layers(net)) == ready.layers
    assert isinstance(net.norm, nn.Identity)
    for after, expected in zip(net(image), before, strict=True):
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


def test_without_batch_norms_the_output_is_the_same_to_the_last_bit(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x).relu()), a=nn.Conv2d(3, 4, 3),
                   b=nn.ConvTranspose2d(4, 2, 3))
    before = net(image)
    make_ready(net, image)
    assert torch.equal(net(image), before)


def test_quantized_model_stays_close_to_the_float_one(make_net, make_ready, image, quantize_all):
    net = build(make_net)
    before = net(image)[0]
    quantize_all(make_ready(net, image, spec={'weight': {'num_bits': 8}}))
    assert 0 < (net(image)[0] - before).norm() < 0.1 * before.norm()


def test_a_checkpoint_rebuilds_the_model_bit_by_bit(make_net, make_ready, image, quantize_all):
    net = build(make_net)
    ready = make_ready(net, image)
    quantize_all(ready)
    file = io.BytesIO()
    torch.save({'state': net.state_dict(), 'layers': json.dumps(describe(ready))}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    fresh = build(make_net)
    rebuild(fresh, json.loads(loaded['layers']))
    fresh.load_state_dict(loaded['state'])
    for after, expected in zip(fresh(image), net(image), strict=True):
        assert torch.equal(after, expected)
    assert fresh.state_dict().keys() == net.state_dict().keys()
    assert {name for name, _ in quantized_layers(fresh)} == set(ready.layers)


def test_the_state_dict_is_as_small_as_its_bits(make_net, make_ready, image, quantize_all):
    net = make_net(lambda net, x: net.c(net.b(net.a(x))), a=nn.Conv2d(3, 32, 3),
                   b=nn.Conv2d(32, 32, 3), c=nn.Conv2d(32, 2, 1))
    codes = {}
    for bits in (2, 4):
        copied = copy.deepcopy(net)
        quantize_all(make_ready(copied, image, spec={'weight': {'num_bits': bits}}))
        codes[bits] = copied.state_dict()['b.codes']
    assert codes[2].nbytes * 16 == codes[4].nbytes * 8 == net.b.weight.nbytes


def test_rebuilding_another_architecture_is_refused(make_net, make_ready, image, quantize_all):
    ready = make_ready(build(make_net), image)
    quantize_all(ready)
    description = describe(ready)
    lacking = build(make_net)
    del lacking.body
    with pytest.raises(ValueError, match="'body.0' is not in the model.*architecture"):
        rebuild(lacking, description)
    for other, message in ((nn.ConvTranspose2d(4, 4, 3), 'has a conv2d'),
                           (nn.Conv2d(4, 4, 3), 'shape'), (nn.Conv1d(4, 4, 3), 'not supported')):
        changed = build(make_net)
        changed.body[0] = other
        with pytest.raises(ValueError, match=message):
            rebuild(changed, description)


def test_a_layer_under_several_names_is_replaced_under_all(make_net, make_ready, image):
    """Shared heads: one module, several places, in one parent and in others."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = make_net(lambda net, x: net.b(net.a(x)) + net.levels[1][0](x), a=conv, b=conv,
                   levels=nn.ModuleList([nn.Sequential(conv), nn.Sequential(conv)]))
    before = net(image)
    ready = make_ready(net, image)
    assert list(ready.layers) == ['a']
    assert net.a is net.b is net.levels[0][0] is net.levels[1][0] is ready.layers['a']
    assert torch.equal(net(image), before)


def test_a_model_may_itself_be_a_layer(make_ready, quantize_all):
    model, x = nn.Linear(4, 4).eval(), torch.ones(1, 4)
    before = model(x)
    ready = make_ready(model, x)
    assert ready.layers == {'': model} and torch.equal(model(x), before)
    quantize_all(ready)
    fresh = nn.Linear(4, 4).eval()
    rebuild(fresh, describe(ready))
    fresh.load_state_dict(model.state_dict())
    assert 'codes' in model.state_dict() and torch.equal(fresh(x), model(x))


def test_a_parent_with_a_fused_path_still_calls_quantized_layers(make_ready):
    """nn.TransformerEncoderLayer otherwise reads the weights, which are on another scale."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    ready = make_ready(model, x)
    assert set(ready.layers) == {'linear1', 'linear2'}
    with torch.no_grad():
        before = model(x)
        calls = []
        for layer in ready.layers.values():
            layer.forward = lambda *args, layer=layer: (
                calls.append(1), QuantizedLayer.forward(layer, *args))[1]
        after = model(x)
    assert len(calls) == 2
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize('bits', [2, 4])
def test_a_linear_layer_is_solved_like_a_convolution_of_one_pixel(bits):
    torch.manual_seed(0)
    linear, conv = nn.Linear(12, 7).double(), nn.Conv2d(12, 7, 1).double()
    conv.weight.data = linear.weight.data.view(7, 12, 1, 1)
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64).relu()
    positions = torch.randperm(60)[:50]
    found = []
    for layer, inputs in ((linear, x.permute(0, 2, 3, 1)), (conv, x)):
        geometry = layer_geometry(layer)
        rows = weight_rows(layer.weight.detach(), geometry)
        patches = gather_patches(inputs, positions, geometry)
        sums = add_ridge(layer_statistics(patches.round(decimals=1), rows @ patches), rows)
        found.append(solve_bitsplit(sums.gram, sums.cross, rows, bits, y_sq=sums.y_sq))
    assert torch.equal(found[0].codes, found[1].codes)
    torch.testing.assert_close(found[0].scale, found[1].scale)
    assert found[0].codes.unique().numel() > 2


@pytest.mark.parametrize('on', ['a', 'norm'])
def test_hooks_of_the_user_see_what_they_saw(on, make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.norm(net.a(x)).relu()), a=nn.Conv2d(3, 4, 1),
                   norm=nn.BatchNorm2d(4), b=nn.Conv2d(4, 2, 1))
    seen = []
    net.get_submodule(on).register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args[0].clone(), out.clone())),
        with_kwargs=True)
    handle = net.b.register_forward_pre_hook(lambda module, args: (args[0] * 0.5 + 1,))
    before = net(image)
    ready = make_ready(net, image)
    assert set(ready.layers) == {'a', 'b'} and not ready.folded
    assert torch.equal(net(image), before)
    for ours, first in zip(seen[-1], seen[0], strict=True):
        assert torch.equal(ours, first)
    handle.remove()
    assert not torch.equal(net(image), before)


def test_a_hook_that_changes_the_output_leaves_its_layer_in_float(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    net.b.register_forward_hook(lambda module, args, out: out * 2)
    before = net(image)
    assert set(make_ready(net, image).layers) == {'a'}
    assert torch.equal(net(image), before)


def test_attributes_that_parents_read_are_there(make_net, make_ready, image, quantize_all):
    def run(net, x):
        if net.a.padding_mode == 'zeros' and not net.b.transposed:
            x = net.a(x) * net.a.gain
        return net.b(x)

    net = make_net(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1))
    net.a.gain = 2.0
    before = net(image)
    ready = make_ready(net, image)
    assert set(ready.layers) == {'a', 'b'} and torch.equal(net(image), before)
    rebuilt = make_net(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1))
    rebuilt.a.gain = 3.0
    quantize_all(ready)
    rebuild(rebuilt, describe(ready))
    assert rebuilt.a.gain == 3.0 and isinstance(rebuilt.a, QuantizedLayer)
