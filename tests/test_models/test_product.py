"""A product of activations: codes times codes, and what a checkpoint holds of it."""

import copy

import pytest
import torch
from attention_nets import Encoder

from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantizers.log2_quantizer import log2_round_trip
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.models.watch.watch_model import watch
from mmbitsplit.structures import Log2Params, ProductSolution, QParams


def installed(a, b):
    product = Product()
    product.install(ProductSolution(a, b))
    return product


def params(scale, zero_point, low, high):
    return QParams(torch.tensor(scale), torch.tensor(zero_point), low, high)


def by_hand(x, scale, zero_point, low, high):
    """Plain affine round trip in float64."""
    codes = (x.double() / scale).round() + zero_point
    return (codes.clamp(low, high) - zero_point) * scale


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, 5, 4, generator=generator),
            torch.randn(2, 3, 4, 6, generator=generator))


def test_both_inputs_are_rounded_and_multiplied(inputs):
    a, b = inputs
    product = installed(params([0.1], [3.0], 0, 15), params([0.2], [0.0], -8, 7))
    wanted = by_hand(a, 0.1, 3, 0, 15) @ by_hand(b, 0.2, 0, -8, 7)
    torch.testing.assert_close(product(a, b).double(), wanted, rtol=1e-5, atol=1e-6)
    product.to_float()
    assert torch.equal(product(a, b), a @ b) and not product.quantized


def test_a_scale_a_head_is_of_the_dimension_before_the_last_two(inputs):
    a, b = inputs
    scales, points = [0.05, 0.1, 0.4], [1.0, 8.0, 15.0]
    product = installed(params(scales, points, 0, 15), params([0.2], [0.0], -8, 7))
    scale, point = (torch.tensor(value).double().view(3, 1, 1) for value in (scales, points))
    wanted = by_hand(a, scale, point, 0, 15) @ by_hand(b, 0.2, 0, -8, 7)
    torch.testing.assert_close(product(a, b).double(), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='each of 3 heads got an input of shape'):
        product(a[:, :2], b[:, :2])


def test_powers_of_two_keep_zero_and_one():
    x = torch.tensor([1.0, 0.74, 0.70, 0.3, 0.0, 1e-9])
    assert log2_round_trip(x, 4).tolist() == [1.0, 1.0, 0.5, 0.25, 0.0, 0.0]
    assert log2_round_trip(torch.tensor([2.0 ** -14, 2.0 ** -15]), 4).tolist() == [2.0 ** -14, 0.0]
    a, b = x.view(1, 6), torch.eye(6)
    product = installed(Log2Params(4), params([0.5], [0.0], 0, 255))
    assert torch.equal(product(a, b), log2_round_trip(a, 4))


def test_the_float_model_s_forwards_multiply_what_they_are_given(inputs):
    product = installed(params([0.5], [0.0], -8, 7), None)
    assert not torch.equal(product(*inputs), inputs[0] @ inputs[1])
    with streams_through():
        assert torch.equal(product(*inputs), inputs[0] @ inputs[1])
    with streams_through(lambda module, x: x + 1):  # another thing is done with streams
        assert not torch.equal(product(*inputs), inputs[0] @ inputs[1])


def test_gradients_pass_inside_the_range(inputs):
    a, b = (x.clone().requires_grad_() for x in inputs)
    product = installed(params([0.1], [8.0], 0, 15), params([1.0], [0.0], -8, 7))
    product(a, b).sum().backward()
    inside = (a / 0.1 >= -8) & (a / 0.1 <= 7)
    rounded = b.detach().round().clamp(-8, 7)
    wanted = rounded.sum(-1).unsqueeze(-2).expand_as(a) * inside
    torch.testing.assert_close(a.grad, wanted)


def test_autocast_gets_what_it_expects_of_codes_in_full(inputs):
    product = installed(params([0.02], [0.0], -128, 127), params([0.02], [0.0], -128, 127))
    with torch.autocast('cpu', torch.bfloat16):
        output = product(*inputs)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, product(*inputs).to(torch.bfloat16))


@pytest.mark.parametrize('solution', [
    ProductSolution(params([0.1, 0.2], [3.0, 0.0], 0, 15), params([0.2], [0.0], -8, 7)),
    ProductSolution(Log2Params(3), params([0.2], [1.0], 0, 255)),
    ProductSolution(None, params([0.2], [0.0], -8, 7))])
def test_a_row_and_a_state_make_it_again(solution):
    product, again = installed(solution.a, solution.b), Product()
    again.expect(product.plan_row())
    again.load_state_dict(product.state_dict())
    a, b = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 4, 3)
    assert torch.equal(again(a, b), product(a, b))
    assert torch.equal(copy.deepcopy(product)(a, b), product(a, b))


def test_calls_are_seen_and_roles_stay():
    model = Encoder(2, masked=True).eval()
    image = torch.randn(2, 3, 8, 8)
    flow = watch(model, lambda: model(image), inputs=image)
    scores, mixed = (flow.products[f'blocks.1.{name}'] for name in ('scores', 'mixed'))
    assert scores.shapes == [((2, 2, 16, 8), (2, 2, 8, 16))] and scores.heads('b') == 2
    assert scores.multiplications == [2 * 2 * 16 * 16 * 8] and not scores.softmax
    assert mixed.softmax == {'a'}
    assert flow.sites[:5] == ['patch', 'blocks.0.qkv', 'blocks.0.scores', 'blocks.0.mixed',
                              'blocks.0.proj']
    assert flow.order == [name for name in flow.sites if name not in flow.products]
    assert flow.sources['blocks.0.proj'] == {'blocks.0.qkv'}
    assert flow.feeds['blocks.0.qkv'] == {'blocks.0.proj'}
