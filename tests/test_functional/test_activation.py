"""Scale search for inputs: never worse than the range seen, finite on anything."""

import pytest
import torch
import torch.nn.functional as F

from mmbitsplit.functional import (
    ActivationSamples,
    channel_qparams,
    code_range,
    fake_quantize,
    interpolate_qparams,
    quantization_error,
    quantize,
    search_qparams,
)
from mmbitsplit.structures import QParams


def make_samples(kind, seed=0, channels=6, size=400, decades=1):
    """Channels of different ranges (``decades=0``: of the same), through an activation."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(channels, size, generator=generator, dtype=torch.float64)
    values *= torch.logspace(-decades, decades, channels).unsqueeze(1)
    values = {'symmetric': values, 'relu': values.relu(), 'silu': F.silu(values),
              'mirrored': torch.cat([values, -values], 1), 'shifted': values + 4,
              'heavy': values ** 3, 'negative': -values.abs()}[kind]
    return of_values(values)


def of_values(values):
    return ActivationSamples(values, values.amin(1), values.amax(1))


def total_error(samples, qparams):
    return quantization_error(samples.values, qparams).sum().item()


SYMMETRY_OF = [('relu', 'unsigned'), ('relu', 'signed'), ('relu', 'asymmetric'),
               ('symmetric', 'signed'), ('symmetric', 'asymmetric'), ('silu', 'signed'),
               ('silu', 'asymmetric'), ('shifted', 'asymmetric'), ('heavy', 'signed'),
               ('negative', 'asymmetric'), ('silu', 'auto')]


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize(('kind', 'symmetry'), SYMMETRY_OF)
def test_mse_search_is_never_worse_than_minmax(kind, symmetry, per_channel, bits):
    for seed in range(3):
        samples = make_samples(kind, seed)
        found, minmax = (search_qparams(samples, bits, symmetry=symmetry, per_channel=per_channel,
                                        search=search) for search in ('mse', 'minmax'))
        if per_channel:
            assert (quantization_error(samples.values, found)
                    <= quantization_error(samples.values, minmax) * (1 + 1e-12)).all()
        assert total_error(samples, found) <= total_error(samples, minmax) * (1 + 1e-12)


@pytest.mark.parametrize(('kind', 'symmetry'), [
    ('relu', 'unsigned'), ('symmetric', 'signed'), ('heavy', 'signed'), ('silu', 'asymmetric')])
def test_mse_search_is_clearly_better_than_minmax_at_few_bits(kind, symmetry):
    samples = make_samples(kind)
    found, minmax = (search_qparams(samples, 3, symmetry=symmetry, search=search)
                     for search in ('mse', 'minmax'))
    assert total_error(samples, found) < 0.8 * total_error(samples, minmax)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize(('kind', 'symmetry'), SYMMETRY_OF)
def test_one_scale_a_channel_is_better_than_one_for_all(kind, symmetry, bits):
    samples = make_samples(kind)
    by_channel, tensor = (search_qparams(samples, bits, symmetry=symmetry, per_channel=per_channel)
                          for per_channel in (True, False))
    assert by_channel.scale.shape == by_channel.zero_point.shape == (6,)
    assert tensor.scale.shape == tensor.zero_point.shape == (1,)
    assert total_error(samples, by_channel) < total_error(samples, tensor)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize(('kind', 'symmetry'), SYMMETRY_OF)
def test_parameters_are_a_valid_quantizer(kind, symmetry, bits):
    qparams = search_qparams(make_samples(kind), bits, symmetry=symmetry, per_channel=True)
    signed = symmetry == 'signed'
    assert (qparams.quant_min, qparams.quant_max) == code_range(bits, signed=signed) \
        or symmetry == 'auto'
    assert (qparams.scale > 0).all()
    assert torch.equal(qparams.zero_point, qparams.zero_point.round())
    assert (qparams.quant_min <= qparams.zero_point).all()
    assert (qparams.zero_point <= qparams.quant_max).all()
    assert not qparams.unit


def test_error_is_the_mean_squared_round_trip():
    samples = make_samples('silu')
    qparams = search_qparams(samples, 4, symmetry='asymmetric', per_channel=True)
    round_trip = fake_quantize(samples.values, qparams, channel_dim=0)
    torch.testing.assert_close(quantization_error(samples.values, qparams),
                               (samples.values - round_trip).square().mean(1))


@pytest.mark.parametrize('symmetry', ['unsigned', 'signed', 'asymmetric'])
def test_minmax_reaches_the_range_seen_even_beyond_the_samples(symmetry):
    values = make_samples('relu').values
    samples = ActivationSamples(values, values.amin(1), values.amax(1) * 3)
    qparams = search_qparams(samples, 8, symmetry=symmetry, search='minmax')
    reach = (qparams.quant_max - qparams.zero_point) * qparams.scale
    torch.testing.assert_close(reach, samples.high.max().reshape(1), rtol=1e-3, atol=0)


def test_unsigned_is_refused_for_negative_inputs_seen_anywhere():
    samples = make_samples('relu')
    search_qparams(samples, 4, symmetry='unsigned')
    below = ActivationSamples(samples.values, samples.low - 0.25, samples.high)
    with pytest.raises(ValueError, match="'unsigned'.*-0.25.*'signed', 'asymmetric' or 'auto'"):
        search_qparams(below, 4, symmetry='unsigned')


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('seed', range(3))
def test_auto_fits_the_symmetry_to_the_inputs(seed, bits):
    unsigned, signed = code_range(bits, signed=False), code_range(bits, signed=True)

    def chosen(kind):
        qparams = search_qparams(make_samples(kind, seed, decades=0), bits)
        return (qparams.quant_min, qparams.quant_max), bool((qparams.zero_point > 0).any())

    assert chosen('relu') == (unsigned, False)
    assert chosen('mirrored') == (signed, False)
    assert chosen('silu') == (unsigned, True)


@pytest.mark.parametrize('kind', ['relu', 'symmetric', 'silu'])
def test_auto_is_no_worse_than_signed_alone(kind):
    samples = make_samples(kind)
    assert total_error(samples, search_qparams(samples, 4)) \
        <= total_error(samples, search_qparams(samples, 4, symmetry='signed'))


@pytest.mark.parametrize('search', ['mse', 'minmax'])
@pytest.mark.parametrize(('kind', 'symmetry'), SYMMETRY_OF)
def test_channels_of_their_own_help_with_the_codes_of_the_tensor(kind, symmetry, search):
    samples = make_samples(kind)
    tensor = search_qparams(samples, 4, symmetry=symmetry, search=search)
    by_channel = channel_qparams(samples, tensor, search)
    assert by_channel.unit
    assert by_channel.scale.shape == by_channel.zero_point.shape == (6,)
    assert (by_channel.scale > 0).all()
    assert (by_channel.quant_min, by_channel.quant_max) == (tensor.quant_min, tensor.quant_max)
    assert total_error(samples, by_channel) < total_error(samples, tensor)
    if symmetry in ('signed', 'unsigned'):
        assert not by_channel.zero_point.any()


@pytest.mark.parametrize('search', ['mse', 'minmax'])
@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('activation', [F.silu, F.gelu, F.hardswish, F.leaky_relu])
def test_a_zero_point_a_channel_spends_the_codes_of_every_channel(activation, bits, search):
    """A wide channel leaves one code below zero; the others have the error of their own range."""
    values = make_samples('symmetric', size=4000).values
    values = activation(values + values.std(1, keepdim=True))
    samples = of_values(torch.cat([values, 3000 * values[-1:].relu()]))
    tensor = search_qparams(samples, bits, symmetry='asymmetric', search=search)
    found = channel_qparams(samples, tensor, search)
    alone = search_qparams(samples, bits, symmetry='asymmetric', search=search, per_channel=True)
    assert torch.equal(found.scale, alone.scale)
    assert torch.equal(found.zero_point, alone.zero_point)
    # A leaky ReLU's lobe is less than half a step of 4 bits: no code is spent on it.
    assert len(found.zero_point.unique()) > 1 or bool((-samples.low < found.scale / 2).all())
    # Per channel by brute force: no pair of scale and zero point is much better.
    errors = quantization_error(samples.values, found)
    for c in (1, 3, 5):
        low, high = float(samples.low[c]), float(samples.high[c])
        best = min(
            float(quantization_error(samples.values[c:c + 1], QParams(
                torch.tensor([step], dtype=torch.float64), torch.tensor([float(zero)]), 0,
                2 ** bits - 1)))
            for part in torch.linspace(0.1 if search == 'mse' else 1.0, 1.0, 40).tolist()
            for step in [part * (high - low) / (2 ** bits - 1)]
            for zero in range(round(-low / step) + 2) if zero < 2 ** bits)
        assert float(errors[c]) <= 1.3 * best


@pytest.mark.parametrize('symmetry', ['unsigned', 'asymmetric'])
@pytest.mark.parametrize('search', ['mse', 'minmax'])
def test_a_dead_channel_gets_the_scale_of_the_tensor(symmetry, search):
    values = make_samples('relu').values
    values[2] = 0
    tensor = search_qparams(of_values(values), 4, symmetry=symmetry)
    scales = channel_qparams(of_values(values), tensor, search).scale
    assert scales[2] == tensor.scale
    assert (scales[[0, 1, 3, 4, 5]] != tensor.scale).all()


def test_interpolated_scales_reach_from_tensor_to_channel():
    tensor = QParams(torch.tensor([0.5]), torch.tensor([3.0]), 0, 255)
    scale, zero_point = torch.tensor([0.1, 0.5, 2.0]), torch.tensor([3.0, 40.0, 0.0])
    for points in (zero_point, torch.full((3,), 3.0)):
        by_channel = QParams(scale, points, 0, 255)
        start, middle, end = (interpolate_qparams(tensor, by_channel, strength)
                              for strength in (0.0, 0.5, 1.0))
        torch.testing.assert_close(start.scale, tensor.scale.expand(3))
        assert torch.equal(start.zero_point, tensor.zero_point.expand(3))
        assert torch.equal(end.scale, scale) and torch.equal(end.zero_point, points)
        torch.testing.assert_close(middle.scale, (tensor.scale * scale).sqrt())
        assert torch.equal(middle.zero_point, middle.zero_point.round())


@pytest.mark.parametrize('strength', [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('kind', ['silu', 'shifted', 'negative'])
def test_no_strength_clips_what_its_ends_hold(kind, bits, strength):
    """Where the tensor's range holds all of a channel, every strength does but for roundings."""
    samples = make_samples(kind)
    tensor = search_qparams(samples, bits, symmetry='asymmetric', search='minmax')
    by_channel = channel_qparams(samples, tensor, 'minmax')
    found = interpolate_qparams(tensor, by_channel, strength)
    spare = 0.51 * (found.scale + by_channel.scale)
    low = (found.quant_min - found.zero_point) * found.scale
    high = (found.quant_max - found.zero_point) * found.scale
    assert (low <= samples.low + spare).all()
    assert (high >= samples.high - spare).all()
    assert (found.quant_min <= found.zero_point).all()
    assert (found.zero_point <= found.quant_max).all()


@pytest.mark.parametrize('values', [
    torch.zeros(2, 9), torch.full((2, 9), 3.0), torch.full((2, 9), -3.0),
    torch.tensor([[0.0] * 9, [2.0] * 9]), torch.tensor([[0.0] * 9, [-1.0] * 9]),
    torch.full((2, 9), 1e-30), torch.full((2, 1), 0.5)], ids=[
        'zero', 'constant', 'negative', 'dead_and_constant', 'dead_and_negative', 'tiny', 'single'])
@pytest.mark.parametrize('symmetry', ['auto', 'signed', 'asymmetric'])
@pytest.mark.parametrize('per_channel', [False, True])
def test_dead_and_constant_inputs_give_finite_parameters(values, symmetry, per_channel):
    samples = of_values(values)
    for bits in (2, 8):
        for search in ('mse', 'minmax'):
            qparams = search_qparams(samples, bits, symmetry=symmetry, per_channel=per_channel,
                                     search=search)
            scales = [qparams.scale]
            if not per_channel:
                scales.append(channel_qparams(samples, qparams, search).scale)
            for scale in scales:
                assert torch.isfinite(scale).all()
                assert (scale > 0).all()
            assert torch.isfinite(quantization_error(values, qparams)).all()


def test_search_leaves_the_samples_alone():
    samples = make_samples('silu')
    before = samples.values.clone()
    channel_qparams(samples, search_qparams(samples, 4))
    assert torch.equal(samples.values, before)


@pytest.mark.parametrize('search', ['kl', 'aciq_gauss', 'aciq_laplace', 'lp'])
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize(('kind', 'symmetry'), [
    (kind, symmetry) for kind, symmetry in SYMMETRY_OF if kind != 'negative'])
def test_other_searches_stay_within_the_range_seen(kind, symmetry, per_channel, search):
    if search == 'kl' and symmetry == 'asymmetric':
        return  # one threshold around zero; options refuse it
    samples = make_samples(kind)
    found, minmax = (search_qparams(samples, 4, symmetry=symmetry, per_channel=per_channel,
                                    search=one) for one in (search, 'minmax'))
    assert found.scale.shape == minmax.scale.shape
    assert (found.scale > 0).all() and torch.isfinite(found.scale).all()
    if found.quant_min == minmax.quant_min:  # 'auto' may choose otherwise
        assert (found.scale <= minmax.scale * (1 + 1e-9)).all()
    if symmetry == 'asymmetric':
        assert torch.equal(fake_quantize(torch.zeros(1, 6), found), torch.zeros(1, 6))


@pytest.mark.parametrize('distribution', ['gauss', 'laplace'])
def test_aciq_clips_at_its_constant(distribution):
    """4 bits: 2.55 standard deviations, 5.03 mean absolute deviations; after ReLU one bit more."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 200_000, generator=generator, dtype=torch.float64)
    if distribution == 'laplace':
        values = values.sign() * torch.empty_like(values).exponential_(generator=generator)
    whole, half = (3.0 * part for part in (values, values.relu()))
    signed, unsigned = (search_qparams(of_values(part), 4, search=f'aciq_{distribution}',
                                       symmetry=symmetry)
                        for part, symmetry in ((whole, 'signed'), (half, 'unsigned')))
    constants = {'gauss': (2.559, 2.936), 'laplace': (5.029, 6.205)}[distribution]
    assert float(signed.scale) * 7 == pytest.approx(3 * constants[0], rel=0.01)
    assert float(unsigned.scale) * 15 == pytest.approx(3 * constants[1], rel=0.01)
    # Around a mean so far from zero that the range begins at zero itself.
    asymmetric = search_qparams(of_values(whole + 20), 4, search=f'aciq_{distribution}',
                                symmetry='asymmetric')
    assert float(asymmetric.scale) * 15 == pytest.approx(20 + 3 * constants[0], rel=0.01)


@pytest.mark.parametrize('norm', [1.5, 2.0, 3.0, 4.0])
def test_lp_has_the_least_error_in_its_own_norm(norm):
    """Larger p fear clipping more, so their steps are wider."""
    samples = make_samples('heavy', decades=0)

    def error(qparams):
        rounded = fake_quantize(samples.values, qparams, channel_dim=0)
        return float((rounded - samples.values).abs().pow(norm).mean())

    found = search_qparams(samples, 4, symmetry='signed', search='lp', norm=norm)
    top = search_qparams(samples, 4, symmetry='signed', search='minmax')
    scanned = [error(QParams(top.scale * k / 200, top.zero_point, -8, 7, unit=False))
               for k in range(20, 201)]
    assert error(found) <= 1.02 * min(scanned)
    if norm == 2:
        squared = search_qparams(samples, 4, symmetry='signed', search='mse')
        torch.testing.assert_close(found.scale, squared.scale)
    wider = search_qparams(samples, 4, symmetry='signed', search='lp', norm=norm + 1)
    assert float(wider.scale) >= float(found.scale)


@pytest.mark.parametrize('search', ['mse', 'aciq_laplace', 'minmax'])
@pytest.mark.parametrize(('kind', 'symmetry'), [
    ('relu', 'unsigned'), ('symmetric', 'signed'), ('silu', 'asymmetric'), ('silu', 'auto')])
def test_widths_of_channels_keep_the_average_and_help(kind, symmetry, search):
    samples = make_samples(kind, decades=1)
    mixed, even = (search_qparams(samples, 4, symmetry=symmetry, per_channel=True, search=search,
                                  bit_allocation=allocation)
                   for allocation in ('aciq', 'uniform'))
    low, high = mixed.limits()
    bits = (high - low + 1).log2()
    assert float(bits.mean()) == 4 and bits.min() >= 2 and bits.max() <= 8
    assert float(bits.max()) > 4
    codes = quantize(samples.values, mixed, channel_dim=0)
    assert (codes >= low.unsqueeze(1)).all() and (codes <= high.unsqueeze(1)).all()
    assert total_error(samples, mixed) < 0.6 * total_error(samples, even)


@pytest.mark.parametrize('search', ['kl', 'aciq_laplace', 'lp'])
@pytest.mark.parametrize(('kind', 'symmetry'), [
    ('relu', 'unsigned'), ('symmetric', 'signed'), ('silu', 'auto')])
def test_ecaq_scales_of_a_search_are_those_of_each_channel(kind, symmetry, search):
    """What the search finds for each channel by itself; signed ones use the code -8 too."""
    samples = make_samples(kind)
    tensor = search_qparams(samples, 4, symmetry=symmetry, search=search)
    scales = channel_qparams(samples, tensor, search).scale
    if symmetry != 'auto':
        alone = search_qparams(samples, 4, per_channel=True, search=search, symmetry=symmetry)
        least = 0.87 if symmetry == 'signed' else 1 - 1e-6
        ratio = scales / alone.scale
        assert ratio.min() >= least and ratio.max() <= 1.01
    assert (scales > 0).all() and torch.isfinite(scales).all()
