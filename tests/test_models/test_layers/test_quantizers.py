"""Quantizers that a layer owns: hard and soft codes, several widths, gradients."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.functional import (
    apply_layer,
    channel_dim,
    code_range,
    fake_quantize,
    product_input,
    rows_to_weight,
    split_bit_planes,
    stitch_bit_planes,
    weight_rows,
)
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.models.layers.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    WeightQuantizerSet,
)
from mmbitsplit.structures import LayerSolution, QParams

LAYERS = {
    'conv': lambda: nn.Conv2d(6, 4, 3, 2, 1),
    'depthwise': lambda: nn.Conv2d(6, 6, 3, groups=6),
    'transposed_grouped': lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
    'linear': lambda: nn.Linear(6, 4),
}


@pytest.fixture(params=LAYERS)
def geometry(request):
    return layer_geometry(LAYERS[request.param]())


def make_codes(geometry, num_bits, seed=0):
    low, high = code_range(num_bits, signed=True, narrow_range=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, geometry.weight_shape, generator=generator).to(torch.int8)


def make_quantizer(geometry, num_bits=4, codes=True, offset=False):
    generator = torch.Generator().manual_seed(num_bits)
    values = [torch.rand(geometry.out_channels, generator=generator) + 0.05 for _ in range(3)]
    return WeightQuantizer(geometry, num_bits, make_codes(geometry, num_bits) if codes else None,
                           values[0], values[1], values[2] if offset else None)


def by_rows(codes, quantizer):
    """The weight, output channel by output channel."""
    geometry = quantizer.geometry
    rows = weight_rows(codes, geometry).float()
    rows = rows * quantizer.scale.view(rows.shape[0], rows.shape[1], 1)
    if quantizer.offset is not None:
        rows = rows + quantizer.offset.view(rows.shape[0], rows.shape[1], 1)
    return rows_to_weight(rows, geometry)


@pytest.mark.parametrize('offset', [False, True])
def test_hard_weight_is_scale_times_codes(geometry, offset):
    quantizer = make_quantizer(geometry, offset=offset)
    assert torch.equal(quantizer.weight(), by_rows(quantizer.codes, quantizer))
    assert quantizer.weight() is quantizer.weight()  # made once
    assert not list(filter(lambda value: value.requires_grad, quantizer.parameters()))


def near(codes, seed=1):
    """Places within and beyond half a step of codes, also exactly half a step away."""
    away = torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    away.view(-1)[::3] = torch.tensor([-0.5, 0.0, 0.5]).repeat(codes.numel())[
        :len(away.view(-1)[::3])]
    return codes + away


@pytest.mark.parametrize('num_bits', [2, 4, 8])
def test_no_step_gives_the_codes_back_bit_for_bit(geometry, num_bits):
    quantizer = make_quantizer(geometry, num_bits)
    codes, weight = quantizer.codes.clone(), quantizer.weight()
    quantizer.soften(near(codes))
    assert quantizer.soft and quantizer.codes.dtype == torch.int8
    assert torch.equal(quantizer.harden(), codes) and not quantizer.soft
    assert torch.equal(quantizer.weight(), weight) and quantizer.codes.dtype == torch.int8


@pytest.mark.parametrize('num_bits', [2, 8])
def test_soft_codes_are_where_they_are_told_and_can_only_go_to_the_neighbour(geometry, num_bits):
    quantizer = make_quantizer(geometry, num_bits)
    codes, position = quantizer.codes.clone(), near(quantizer.codes)
    low, high = code_range(num_bits, signed=True, narrow_range=True)
    quantizer.soften(position)
    wanted = (codes + (position - codes).clamp(-0.5, 0.5)).clamp(low, high)
    torch.testing.assert_close(quantizer.soft_codes().detach(), wanted, rtol=0, atol=1e-4)
    ends = []
    for pull in (1.0, -1.0):
        moved = copy.deepcopy(quantizer)
        optimizer = torch.optim.SGD([moved.rounding], lr=2.0)
        for _ in range(300):
            optimizer.zero_grad()
            (pull * moved.soft_codes()).sum().backward()
            optimizer.step()
        ends.append(moved.harden().int())
    down, up = ends
    assert torch.equal(up - down, torch.ones_like(down))  # every one is free to move
    assert down.min() >= low and up.max() <= high
    assert bool(((codes == down) | (codes == up)).all())
    assert bool(((position - codes <= 0) | (codes == high) | (codes == down)).all())


def test_gradients_of_soft_weights_scales_offsets_and_bias(geometry):
    """Through a layer, against the same arithmetic on rows."""
    quantizer = make_quantizer(geometry, offset=True)
    float_layer = torch.zeros(geometry.weight_shape)
    layer = QuantizedLayer(geometry, float_layer, torch.zeros(geometry.out_channels))
    layer.install_weight(quantizer)
    quantizer.soften(near(quantizer.codes))
    learnt = [quantizer.rounding, quantizer.scale, quantizer.offset, quantizer.bias]
    for value in learnt:
        value.requires_grad_()
    x = torch.randn((2, 6, 7, 7) if geometry.kind != 'linear' else (2, 6))
    found = torch.autograd.grad(layer(x).square().sum(), learnt)
    codes = quantizer.base + (torch.sigmoid(quantizer.rounding) * 1.2 - 0.1).clamp(0, 1)
    output = apply_layer(x, by_rows(codes, quantizer), quantizer.bias, geometry)
    assert torch.equal(layer(x), output)
    expected = torch.autograd.grad(output.square().sum(), learnt)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
        assert one.abs().max() > 0


def test_a_hard_scale_can_be_learnt_too(geometry):
    quantizer = make_quantizer(geometry)
    quantizer.scale.requires_grad_()
    weight = quantizer.weight()
    weight.sum().backward()
    codes = weight_rows(quantizer.codes, geometry).float().sum(-1).flatten()
    torch.testing.assert_close(quantizer.scale.grad, codes)
    with torch.no_grad():
        assert not quantizer.weight().requires_grad


def make_set(geometry):
    """8 bits, 4 with codes of its own, 6 and 3 whose codes are leading planes of the widest."""
    return WeightQuantizerSet([make_quantizer(geometry, 8), make_quantizer(geometry, 3, False),
                               make_quantizer(geometry, 6, False), make_quantizer(geometry, 4)])


def test_every_width_has_its_codes_scale_and_bias(geometry):
    quantizers, alone = make_set(geometry), make_quantizer(geometry, 4)
    widest = quantizers.codes.clone()
    assert quantizers.widths == (3, 4, 6, 8) and quantizers.num_bits == 8
    for num_bits in (4, 3, 8, 6, 3, 4, 8):
        quantizers.use(num_bits)
        codes = {4: alone.codes, 8: widest}.get(num_bits)
        if codes is None:
            planes = split_bit_planes(widest, 8)
            codes = stitch_bit_planes(planes[8 - num_bits:])
        assert torch.equal(quantizers.codes, codes) and quantizers.num_bits == num_bits
        like = make_quantizer(geometry, num_bits)
        assert torch.equal(quantizers.scale, like.scale)
        assert torch.equal(quantizers.bias, like.bias)
        assert torch.equal(quantizers.weight(), by_rows(codes, like))
        held = sum(value.numel() for _, value in quantizers.named_buffers()
                   if value.shape == codes.shape and value.is_floating_point())
        assert held == codes.numel()  # one real weight, whatever the number of widths


def test_what_a_nested_width_has_learnt_stays_its_own(geometry):
    quantizers = make_set(geometry)
    quantizers.use(3)
    before = quantizers.codes.clone()
    quantizers.soften(before + 0.4)
    with torch.no_grad():
        quantizers.rounding.fill_(1.0)  # all one up, but where they are at the end
    quantizers.use(8)
    quantizers.use(3)
    assert quantizers.soft
    learnt = quantizers.harden()
    assert torch.equal(learnt, torch.where(before < 3, before + 1, before))
    quantizers.use(4)
    quantizers.use(3)
    assert torch.equal(quantizers.codes, learnt)


def test_a_layer_switches_widths_and_copies_switch_by_themselves(geometry):
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install_weight(make_set(geometry))
    x = torch.randn((2, 6, 7, 7) if geometry.kind != 'linear' else (2, 6))
    outputs = {}
    for num_bits in (3, 8, 4):
        layer.use(num_bits)
        outputs[num_bits] = layer(x)
        alone = make_quantizer(geometry, num_bits)
        weight = by_rows(layer.codes, alone)
        assert torch.equal(outputs[num_bits], apply_layer(x, weight, alone.bias, geometry))
        assert layer.num_bits == num_bits and torch.equal(layer.product_bias, alone.bias)
    copied = copy.deepcopy(layer)
    copied.use(3)
    assert torch.equal(copied(x), outputs[3]) and torch.equal(layer(x), outputs[4])
    torch.testing.assert_close(copied.double()(x.double()).float(), outputs[3], rtol=1e-4,
                               atol=1e-3)
    with pytest.raises(ValueError, match='num_bits=5 is none of the widths.*3, 4, 6, 8'):
        layer.use(5)
    layer.install_weight(layer.weight_quantizer.keep(3))
    with pytest.raises(ValueError, match='num_bits=8 is none of the widths.*it has 3'):
        layer.use(8)
    assert torch.equal(layer(x), outputs[3])


def test_a_state_dict_wants_whole_codes(geometry):
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install_weight(make_set(geometry))
    model = nn.Sequential(layer)
    layer.install_weight(layer.weight_quantizer.keep(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer.weight_quantizer.soften(near(layer.codes))
    with pytest.raises(ValueError, match="'0' has codes that are not whole.*harden"):
        model.state_dict()
    layer.weight_quantizer.harden()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_solutions_of_several_widths_go_in_and_come_out(geometry):
    """Codes that the widest's planes make are found out and not stored twice."""
    widest = make_quantizer(geometry, 8).solution()
    planes = split_bit_planes(widest.codes, 8)
    narrower = (make_quantizer(geometry, 4).solution(), replace(
        make_quantizer(geometry, 3).solution(), codes=stitch_bit_planes(planes[5:])))
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install(replace(widest, narrower=narrower))
    assert layer.weight_quantizer.nested == {3}
    for num_bits in (3, 4):
        layer.use(num_bits)
        found = layer.solution()
        for one, other in zip((widest, *narrower), (found, *found.narrower), strict=True):
            assert one.num_bits == other.num_bits
            for name in ('codes', 'weight_scale', 'bias'):
                assert torch.equal(getattr(one, name), getattr(other, name))
    layer.install(widest)
    assert layer.weight_quantizer.widths == (8,)


def test_sets_that_cannot_be_are_refused(geometry):
    with pytest.raises(ValueError, match='hold one twice'):
        WeightQuantizerSet([make_quantizer(geometry, 4), make_quantizer(geometry, 4)])
    with pytest.raises(ValueError, match='widest .* has no codes'):
        WeightQuantizerSet([make_quantizer(geometry, 4), make_quantizer(geometry, 8, False)])


@pytest.mark.parametrize('size', [8, 60])  # the compiled loop takes over in between
@pytest.mark.parametrize('unit', [True, False])
def test_an_input_quantizer_computes_as_the_function_and_passes_gradients(unit, size):
    x = torch.randn(2, 6, size, size, generator=torch.Generator().manual_seed(0))
    qparams = QParams(torch.linspace(0.1, 0.3, 6), torch.tensor([3., 0., 7., 15., 8., 2.]), 0, 15,
                      unit=unit)
    quantizer = ActivationQuantizer(qparams, 1)
    assert torch.equal(quantizer(x), product_input(x, qparams))
    assert torch.equal(quantizer.fake_quantize(x), fake_quantize(x, qparams))
    quantizer.scale.requires_grad_()
    quantizer(x.requires_grad_()).sum().backward()
    assert x.grad.count_nonzero() / x.numel() == pytest.approx(float(
        ((x / qparams.scale.view(1, -1, 1, 1) >= -qparams.zero_point.view(1, -1, 1, 1))
         & (x / qparams.scale.view(1, -1, 1, 1) <= 15 - qparams.zero_point.view(1, -1, 1, 1)))
        .float().mean()), abs=1e-6)
    assert quantizer.scale.grad.abs().min() > 0


def test_a_layer_passes_the_same_gradient_through_input_and_output_quantizers(geometry):
    """Of a batch at once, by the compiled loop, and of each image alone, in plain torch."""
    generator = torch.Generator().manual_seed(0)
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install(LayerSolution(
        codes=make_codes(geometry, 4), num_bits=4, bias=None,
        weight_scale=torch.rand(geometry.out_channels, generator=generator) + 0.1,
        qparams=QParams(torch.tensor([0.2]), torch.tensor([5.0]), 0, 15),
        output_qparams=QParams(torch.tensor([0.9]), torch.tensor([0.0]), -8, 7, unit=False)))
    shape = (3000, 6) if geometry.kind == 'linear' else (20, 6, 17, 17)
    x = torch.randn(shape, generator=generator)
    parts = [x.clone().requires_grad_()], [one.clone().requires_grad_() for one in x.split(5)]
    outputs = [torch.cat([layer(one) for one in part]) for part in parts]
    for output in outputs:
        output.square().sum().backward()
    whole, pieces = (torch.cat([one.grad for one in part]) for part in parts)
    torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-4)
    assert whole.abs().max() > 0
    with torch.no_grad():
        assert torch.equal(layer(x), outputs[0])


def test_a_quantized_input_alone(geometry):
    """A float weight with a quantized input: what a sensitivity of activations tries."""
    layer = QuantizedLayer(geometry, torch.randn(geometry.weight_shape), None)
    x = torch.randn((2, 6, 7, 7) if geometry.kind != 'linear' else (2, 6))
    qparams = QParams(torch.tensor([0.2]), torch.tensor([5.0]), 0, 15)
    layer.quantize_input(replace(qparams, unit=False))
    expected = apply_layer(fake_quantize(x, qparams, channel_dim(geometry)), layer.product_weight,
                           None, geometry)
    assert torch.equal(layer(x), expected) and not layer.quantized
    layer.quantize_input(None)
    assert torch.equal(layer(x), layer.float_forward(x))


def test_a_solution_is_a_copy_of_what_the_quantizers_stand_for(geometry):
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install_weight(make_quantizer(geometry, offset=True))
    layer.quantize_input(QParams(torch.tensor([0.2]), torch.tensor([5.0]), 0, 15))
    x = torch.randn((2, 6, 7, 7) if geometry.kind != 'linear' else (2, 6))
    before, taken = layer(x), layer.solution()
    layer.weight_quantizer.soften(layer.codes + 0.3)
    with torch.no_grad():
        layer.weight_quantizer.rounding.add_(5.0)
        for value in (layer.weight_scale, layer.weight_offset, layer.product_bias,
                      layer.qparams.scale):
            value.mul_(1.5)
    assert taken.weight_scale.data_ptr() != layer.weight_scale.data_ptr()
    changed = layer.solution()
    assert changed.codes.dtype == torch.int8 and layer.weight_quantizer.soft
    layer.weight_quantizer.harden()
    after = layer(x)
    assert not torch.equal(after, before)
    for solution, expected in ((taken, before), (changed, after)):
        for _ in range(2):  # whatever is learnt in place, what was installed is as it was
            layer.install(solution)
            assert torch.equal(layer(x), expected)
            with torch.no_grad():
                for value in (layer.weight_scale, layer.weight_offset, layer.product_bias,
                              layer.qparams.scale):
                    value.mul_(1.5)
