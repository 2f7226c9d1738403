"""ACIQ's closed forms against its published table, against samples, and against all choices."""

import itertools
import math

import pytest
import torch

from mmbitsplit.functional import (
    allocate_bits,
    clipping_constant,
    correct_weights,
    round_weight,
    spread,
    weight_scale,
)

# Authors' code, cut to two digits: clipping in units of the spread, by number of bits.
PUBLISHED = {
    'gauss': {1: 1.24, 2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92},
    'laplace': {1: 1.86, 2: 2.83, 3: 3.89, 4: 5.03, 5: 6.2, 6: 7.41, 7: 8.64, 8: 9.89}}


def sample(distribution, count=200_000):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    if distribution == 'gauss':
        return normal
    size = torch.empty_like(normal).exponential_(generator=generator)
    return size * normal.sign()


@pytest.mark.parametrize(('distribution', 'num_bits'), [
    (name, bits) for name, table in PUBLISHED.items() for bits in table])
def test_clipping_constants_are_the_published_ones(distribution, num_bits):
    found = clipping_constant(distribution, num_bits)
    assert found == pytest.approx(PUBLISHED[distribution][num_bits], abs=0.011)
    if num_bits < 8:  # half the range, twice as many codes on it
        assert clipping_constant(distribution, num_bits, half_range=True) == pytest.approx(
            PUBLISHED[distribution][num_bits + 1], abs=0.011)


@pytest.mark.parametrize('num_bits', [2, 3, 4])
@pytest.mark.parametrize('distribution', ['gauss', 'laplace'])
def test_clipping_there_costs_samples_least(distribution, num_bits):
    """The formula's error (uniform noise within, clipping beyond) measured on samples."""
    values = sample(distribution).abs()

    def error(reach):
        return float((values - reach).clamp(min=0).square().mean()) \
            + reach ** 2 / (3 * 4 ** num_bits)

    best = clipping_constant(distribution, num_bits)
    scanned = {reach: error(reach) for reach in torch.linspace(0.5, 8, 301).tolist()}
    assert error(best) <= min(scanned.values()) * 1.001
    assert min(scanned, key=scanned.get) == pytest.approx(best, abs=0.15)


def test_an_unknown_distribution_is_named():
    with pytest.raises(ValueError, match="'laplas'.*did you mean 'laplace'"):
        clipping_constant('laplas', 4)


@pytest.mark.parametrize('rectified', [False, True])
@pytest.mark.parametrize('distribution', ['gauss', 'laplace'])
def test_spread_is_that_of_the_distribution_before_the_relu(distribution, rectified):
    values = 3 * sample(distribution).view(2, -1)
    seen = values.relu() if rectified else values
    found = spread(seen, distribution, rectified=rectified, centred=False)
    assert found == pytest.approx([3.0, 3.0], rel=0.02)
    if not rectified:
        moved = spread(values + 5, distribution, rectified=False, centred=True)
        assert moved == pytest.approx(found.tolist(), rel=1e-3)


@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('seed', range(4))
def test_allocation_keeps_the_average_and_follows_the_width(num_bits, seed):
    width = torch.rand(17 + seed, generator=torch.Generator().manual_seed(seed)).pow(4)
    bits = allocate_bits(width, num_bits)
    assert float(bits.double().mean()) == num_bits
    assert 2 <= int(bits.min()) and int(bits.max()) <= 8
    order = width.argsort()
    assert (bits[order].diff() >= 0).all()  # the wider, the more
    assert torch.equal(allocate_bits(1000 * width, num_bits), bits)


def test_allocation_is_the_closed_form_where_it_gives_integers():
    # bits = 2/3 log2(width) + constant: three octaves of width make two bits.
    width = torch.tensor([1.0, 8.0, 64.0])
    assert allocate_bits(width, 4).tolist() == [2, 4, 6]
    # Codes in proportion to width^(2/3), which is what the paper derives.
    codes = 2.0 ** allocate_bits(width, 4)
    assert torch.equal(codes / codes[0], width ** (2 / 3))


@pytest.mark.parametrize('seed', range(5))
def test_no_other_allocation_of_as_many_codes_has_less_error(seed):
    """Of all choices whose number of codes is no larger; rounding to bits costs a little."""
    width = torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.05
    bits = allocate_bits(width, 4)

    def error(chosen):
        return float((width.double() ** 2 / 4.0 ** torch.as_tensor(chosen)).sum())

    codes = int((2 ** bits).sum())
    best = min(error(choice) for choice in itertools.product(range(2, 9), repeat=5)
               if sum(2 ** b for b in choice) <= codes)
    assert error(bits) <= 1.6 * best
    assert error(bits) <= error([4] * 5)


@pytest.mark.parametrize('width', [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
def test_dead_channels_get_the_fewest_bits(width):
    bits = allocate_bits(torch.tensor(width), 3)
    assert int(bits.sum()) == 9
    assert bits.tolist() == ([3, 3, 3] if not any(width) else [2, 4, 3])


@pytest.mark.parametrize('num_bits', [2, 3, 4])
def test_corrected_weights_have_the_mean_and_the_norm_of_the_float_ones(num_bits):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)).double() + 0.3
    scale = weight_scale(weight, num_bits, 'minmax')
    codes = round_weight(weight, scale, num_bits)
    new_scale, offset = correct_weights(weight, codes, scale)
    corrected = codes * new_scale.unsqueeze(1) + offset.unsqueeze(1)
    torch.testing.assert_close(corrected.mean(1), weight.mean(1))
    torch.testing.assert_close(corrected.std(1), weight.std(1))


def test_correction_by_hand_and_of_channels_without_codes():
    weight = torch.tensor([[-0.5, 0.9, 2.0], [0.1, 0.1, 0.1], [0.0, 0.1, -0.1]]).double()
    codes = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).double()
    scale, offset = correct_weights(weight, codes, torch.ones(3).double())
    ratio = math.sqrt((1.3 ** 2 + 0.1 ** 2 + 1.2 ** 2) / 2)  # means 0.8 and 1
    assert scale.tolist() == pytest.approx([ratio, 1.0, 1.0])
    assert offset.tolist() == pytest.approx([0.8 - ratio, 0.1 - 1.0, 0.0])
