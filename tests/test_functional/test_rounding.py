"""Scales of plain rounding: least error, never worse than the largest weight's scale."""

import pytest
import torch

from mmbitsplit.functional import code_range, round_weight, weight_scale


def random_rows(seed, rows=20, inputs=30):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    return rows ** 3 if seed % 2 else rows  # odd seeds: heavy tails, as in real layers


def rounding_error(weight, scale, bits):
    codes = round_weight(weight, scale, bits)
    return (codes * scale.unsqueeze(-1) - weight).square().sum(-1)


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('seed', range(4))
def test_mse_scale_is_never_worse_than_minmax(seed, bits):
    weight = random_rows(seed)
    best = rounding_error(weight, weight_scale(weight, bits, 'mse'), bits)
    plain = rounding_error(weight, weight_scale(weight, bits, 'minmax'), bits)
    assert (best <= plain * (1 + 1e-12)).all()
    if bits < 5:
        assert best.sum() < 0.98 * plain.sum()  # and clearly better where codes are few


@pytest.mark.parametrize('bits', [2, 3, 4, 5])
@pytest.mark.parametrize('seed', range(2))
def test_mse_scale_is_close_to_the_best_of_a_fine_scan(seed, bits):
    weight = random_rows(seed)
    found = rounding_error(weight, weight_scale(weight, bits), bits)
    top = weight_scale(weight, bits, 'minmax')
    scanned = torch.stack([rounding_error(weight, top * k / 500, bits) for k in range(50, 501)])
    assert (found <= 1.03 * scanned.amin(0)).all()


def test_two_bits_have_the_best_scale_whatever_one_weight_is():
    """All choices of the weights that are not zero, by brute force; one weight is far off."""
    weight = random_rows(1, rows=8, inputs=10)
    weight[:, 0] = torch.logspace(0, 3, 8).to(weight)
    coded = torch.cartesian_prod(*[torch.arange(2.0)] * 10)[1:].to(weight)  # (choices, inputs)
    saved = (coded @ weight.abs().t()).square() / coded.sum(1, keepdim=True)
    least = weight.square().sum(1) - saved.amax(0)
    torch.testing.assert_close(rounding_error(weight, weight_scale(weight, 2), 2), least)
    assert weight_scale(torch.zeros(2, 3), 2).tolist() == [1, 1]


@pytest.mark.parametrize('bits', [2, 3, 8])
def test_minmax_gives_the_largest_weight_the_largest_code(bits):
    weight = random_rows(0)
    codes = round_weight(weight, weight_scale(weight, bits, 'minmax'), bits)
    largest = code_range(bits, signed=True, narrow_range=True)[1]
    assert torch.equal(codes.abs().amax(-1), torch.full((20,), float(largest)).double())
    reconstructed = codes.gather(1, weight.abs().argmax(-1, keepdim=True)).sign()
    assert torch.equal(reconstructed, weight.gather(
        1, weight.abs().argmax(-1, keepdim=True)).sign())


@pytest.mark.parametrize('search', ['mse', 'minmax'])
def test_a_zero_row_gets_scale_one_and_zero_codes(search):
    weight = torch.stack([torch.zeros(5), torch.ones(5)])
    scale = weight_scale(weight, 4, search)
    assert scale[0] == 1
    assert torch.equal(round_weight(weight, scale, 4)[0], torch.zeros(5))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


@pytest.mark.parametrize('search', ['mse', 'minmax'])
def test_a_single_weight_is_represented_exactly(search):
    weight = torch.tensor([[0.37], [-2.1]], dtype=torch.float64)
    scale = weight_scale(weight, 2, search)
    torch.testing.assert_close(round_weight(weight, scale, 2) * scale.unsqueeze(-1), weight)


@pytest.mark.parametrize('bits', range(2, 9))
def test_codes_stay_in_the_narrow_range_and_inputs_unchanged(bits):
    weight = random_rows(1)
    before = weight.clone()
    codes = round_weight(weight, weight.abs().amax(-1) / 1000, bits)
    low, high = code_range(bits, signed=True, narrow_range=True)
    assert (codes.min(), codes.max()) == (low, high)
    weight_scale(weight, bits)
    assert torch.equal(weight, before)


def test_leading_dimensions_are_free():
    weight = random_rows(0).view(4, 5, 30)
    scale = weight_scale(weight, 3)
    assert scale.shape == (4, 5)
    assert torch.equal(scale.view(-1), weight_scale(weight.view(20, 30), 3))
