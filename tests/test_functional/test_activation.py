"""Scale search for inputs: never worse than the range seen, finite on anything."""

import pytest
import torch
import torch.nn.functional as F

from mmbitsplit.functional import (
    ActivationSamples,
    channel_scales,
    code_range,
    fake_quantize,
    interpolate_scales,
    quantization_error,
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
def test_channel_scales_help_with_the_codes_of_the_tensor(kind, symmetry, search):
    samples = make_samples(kind)
    tensor = search_qparams(samples, 4, symmetry=symmetry, search=search)
    scales = channel_scales(samples, tensor, search)
    assert scales.shape == (6,)
    assert (scales > 0).all()
    by_channel = QParams(scales, tensor.zero_point.expand(6), tensor.quant_min, tensor.quant_max)
    assert total_error(samples, by_channel) < total_error(samples, tensor)


@pytest.mark.parametrize('symmetry', ['unsigned', 'asymmetric'])
@pytest.mark.parametrize('search', ['mse', 'minmax'])
def test_a_dead_channel_gets_the_scale_of_the_tensor(symmetry, search):
    values = make_samples('relu').values
    values[2] = 0
    tensor = search_qparams(of_values(values), 4, symmetry=symmetry)
    scales = channel_scales(of_values(values), tensor, search)
    assert scales[2] == tensor.scale
    assert (scales[[0, 1, 3, 4, 5]] != tensor.scale).all()


def test_interpolated_scales_reach_from_tensor_to_channel():
    tensor, by_channel = torch.tensor([0.5]), torch.tensor([0.1, 0.5, 2.0])
    torch.testing.assert_close(interpolate_scales(tensor, by_channel, 0.0), tensor.expand(3))
    torch.testing.assert_close(interpolate_scales(tensor, by_channel, 1.0), by_channel)
    torch.testing.assert_close(interpolate_scales(tensor, by_channel, 0.5),
                               (tensor * by_channel).sqrt())


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
                scales.append(channel_scales(samples, qparams, search))
            for scale in scales:
                assert torch.isfinite(scale).all()
                assert (scale > 0).all()
            assert torch.isfinite(quantization_error(values, qparams)).all()


def test_search_leaves_the_samples_alone():
    samples = make_samples('silu')
    before = samples.values.clone()
    channel_scales(samples, search_qparams(samples, 4))
    assert torch.equal(samples.values, before)
