"""Gradients of the round trips: those of plain torch, at every size, layout and kernel."""

import pytest
import torch

from mmbitsplit.functional import fake_quantize, product_input
from mmbitsplit.functional.kernels import numba_loops
from mmbitsplit.functional.quantizers.straight_through import (
    fake_quantize_ste,
    gradient_times,
    product_input_ste,
    round_codes_ste,
)
from mmbitsplit.structures import QParams

SMALL, LARGE = (2, 6, 5, 7), (2, 6, 40, 41)  # below and above where the compiled loop takes over
PAIRS = [(fake_quantize_ste, fake_quantize), (product_input_ste, product_input)]


def make_qparams(kind, channels):
    generator = torch.Generator().manual_seed(1)
    count = 1 if kind in ('tensor', 'signed') else channels
    scale = torch.rand(count, generator=generator) * 0.2 + 0.1
    zero_point = torch.randint(0, 16, (count,), generator=generator).float()
    if kind == 'signed':
        return QParams(scale, torch.zeros(1), -8, 7)
    largest = torch.tensor([3.0, 7.0, 15.0] * channels)[:channels]
    return {'tensor': QParams(scale, zero_point, 0, 15),
            'ecaq': QParams(scale, zero_point, 0, 15),
            'per_channel': QParams(scale, zero_point, 0, 15, unit=False),
            'widths': QParams(scale, torch.zeros(channels), 0, 15, unit=False,
                              channel_max=largest)}[kind]


def make_x(shape, layout, channel_dim):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if channel_dim == -1:
        x = x.movedim(1, -1)
        x = x if layout == 'strided' else x.contiguous()
    elif layout == 'strided':
        x = x.contiguous(memory_format=torch.channels_last)
    assert x.is_contiguous() == (layout == 'contiguous')
    return x


def plain(x, qparams, channel_dim, real):
    """Clip, round straight through, scale: in operators that autograd knows."""
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    scale, zero_point = qparams.scale.view(shape), qparams.zero_point.view(shape).to(x)
    low, high = (bound.view(-1 if bound.numel() == 1 else shape).to(x) - zero_point
                 for bound in qparams.limits())
    clipped = torch.minimum(torch.maximum(x / scale, low), high)
    codes = clipped + (clipped.round() - clipped).detach()
    return codes * scale if real else codes


def gradients(function, x, qparams):
    x = x.detach().requires_grad_()
    scale, zero_point = (value.clone().requires_grad_()
                         for value in (qparams.scale, qparams.zero_point))
    output = function(x, QParams(scale, zero_point, qparams.quant_min, qparams.quant_max,
                                 unit=qparams.unit, channel_max=qparams.channel_max))
    weights = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).to(x)
    return output, *torch.autograd.grad((output * weights.view(output.shape)).sum(),
                                        (x, scale, zero_point))


@pytest.mark.parametrize('kind', ['tensor', 'signed', 'ecaq', 'per_channel', 'widths'])
@pytest.mark.parametrize('channel_dim', [1, -1])
@pytest.mark.parametrize('layout', ['contiguous', 'strided'])
@pytest.mark.parametrize('shape', [SMALL, LARGE], ids=['small', 'large'])
@pytest.mark.parametrize(('ours', 'without'), PAIRS, ids=['fake_quantize', 'product_input'])
def test_forward_is_the_kernel_and_backward_is_plain_torch(ours, without, shape, layout,
                                                           channel_dim, kind):
    qparams, x = make_qparams(kind, shape[1]), make_x(shape, layout, channel_dim)
    real = ours is fake_quantize_ste or not qparams.unit
    output, *found = gradients(lambda x, q: ours(x, q, channel_dim), x, qparams)
    _, *expected = gradients(lambda x, q: plain(x, q, channel_dim, real), x, qparams)
    assert torch.equal(output, without(x, qparams, channel_dim))
    assert all(bool(gradient.abs().max() > 0) for gradient in expected)
    for one, other, atol in zip(found, expected, (1e-5, 1e-2, 1e-2)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


def test_large_inputs_do_take_the_compiled_loop(monkeypatch):
    """Else the comparison above would be between plain torch and itself."""
    called = []
    kernel = numba_loops.quantize_rows
    monkeypatch.setattr(numba_loops, 'quantize_rows',
                        lambda *args: called.append(1) or kernel(*args))
    for shape, count in ((SMALL, 0), (LARGE, 1)):
        x = make_x(shape, 'contiguous', 1).requires_grad_()
        product_input_ste(x, make_qparams('ecaq', 6)).sum().backward()
        assert len(called) == count and x.grad.abs().max() > 0


def test_codes_times_scale_have_the_gradient_of_the_real_round_trip():
    """Of a scale that stands in the weights, half of the gradient comes back through them."""
    qparams, x = make_qparams('ecaq', 6), make_x(SMALL, 'contiguous', 1)
    rescaled = gradients(
        lambda x, q: product_input_ste(x, q) * q.scale.view(1, -1, 1, 1), x, qparams)
    for one, other in zip(rescaled, gradients(fake_quantize_ste, x, qparams)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('place', [-3.4, -0.2, 0.3, 1.6, 7.2, 9.0])
def test_one_value_by_hand(place):
    """Esser et al., Eq. 3 and 5, codes 0 to 7."""
    scale = torch.tensor([0.5], requires_grad=True)
    x = torch.tensor([[place * 0.5]], requires_grad=True)
    fake_quantize_ste(x, QParams(scale, torch.zeros(1), 0, 7)).sum().backward()
    inside = 0 <= place <= 7
    wanted = round(place) - place if inside else 0.0 if place < 0 else 7.0
    assert float(x.grad) == float(inside)
    assert float(scale.grad) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize('ours', [fake_quantize_ste, product_input_ste])
def test_nothing_is_recorded_where_no_gradient_is_wanted(ours):
    qparams, x = make_qparams('tensor', 6), make_x(SMALL, 'contiguous', 1)
    assert ours(x, qparams).grad_fn is None
    with torch.no_grad():
        assert ours(x.requires_grad_(), qparams).grad_fn is None
    with torch.inference_mode():
        assert ours(make_x(LARGE, 'contiguous', 1), qparams).is_inference()


@pytest.mark.parametrize('shape', [(6,), (0, 6, 4, 4)])
def test_one_row_and_no_row(shape):
    channel_dim = -1 if len(shape) == 1 else 1
    x = torch.linspace(-1, 1, 6).expand(shape) if len(shape) == 1 else torch.zeros(shape)
    _, grad_x, grad_scale, _ = gradients(lambda x, q: fake_quantize_ste(x, q, channel_dim), x,
                                      make_qparams('ecaq', 6))
    assert grad_x.shape == x.shape and grad_scale.shape == (6,)
    assert bool(grad_scale.abs().sum() > 0) == bool(x.numel())


def test_a_clipped_value_goes_with_the_zero_point():
    """By differences of whole steps of it: 5 lies above the range, 0.3 inside, -4 below."""
    def rounded(zero_point):
        return fake_quantize(torch.tensor([[5.0, 0.3, -4.0]]), QParams(
            torch.tensor([0.5]), torch.tensor([zero_point]), 0, 7), -1)

    zero_point = torch.tensor([3.0], requires_grad=True)
    for at in range(3):
        fake_quantize_ste(torch.tensor([[5.0, 0.3, -4.0]]), QParams(
            torch.tensor([0.5]), zero_point, 0, 7), -1)[0, at].backward()
        difference = (rounded(4.0) - rounded(2.0))[0, at] / 2
        assert float(zero_point.grad) == float(difference)
        zero_point.grad = None


@pytest.mark.parametrize('everywhere', [False, True])
def test_rounded_codes_have_the_gradient_of_their_position(everywhere):
    position = torch.tensor([-4.0, -3.2, -3.0, -0.5, 0.5, 1.5, 2.6, 3.0, 3.1], requires_grad=True)
    codes = round_codes_ste(position, -3, 3, everywhere)
    codes.backward(torch.arange(1.0, 10.0))
    assert codes.tolist() == [-3, -3, -3, 0, 0, 2, 3, 3, 3]
    inside = position.detach().abs() <= 3
    assert torch.equal(position.grad, torch.where(inside | everywhere, torch.arange(1.0, 10.0), 0))


def test_a_gradient_is_multiplied_and_the_value_is_not():
    value = torch.tensor([0.1, 3.0], requires_grad=True)
    out = gradient_times(value, 0.25)
    assert torch.equal(out, value)
    out.square().sum().backward()
    torch.testing.assert_close(value.grad, 0.5 * value.detach())
