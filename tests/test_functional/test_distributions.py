"""Channel ranges and code counts agree with what they sum up."""

from collections import Counter

import pytest
import torch

from mmbitsplit.functional import (
    ActivationSamples,
    channel_qparams,
    channel_ranges,
    code_histogram,
    code_range,
    dequantize,
    search_qparams,
)
from mmbitsplit.structures import QParams


def samples_of(channels: int, count: int = 500, seed: int = 0) -> ActivationSamples:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(channels, count, generator=generator)
    values = values * torch.logspace(-2, 1, channels).view(-1, 1)[torch.randperm(
        channels, generator=generator)]
    low, high = values.aminmax(dim=1)
    return ActivationSamples(values, low * 1.5, high * 1.5)  # the range is of more than samples


def test_percentiles_lie_inside_the_range():
    ranges = channel_ranges(samples_of(20))
    for low, low_tail, high_tail, high in zip(
            *(ranges[name] for name in ('low', 'low_tail', 'high_tail', 'high'))):
        assert low < low_tail < high_tail < high
    assert ranges['num_channels'] == 20 and ranges['channel'] == list(range(20))
    assert ranges['clip_low'] is None and ranges['clip_high'] is None


def test_tails_are_the_percentiles_of_the_samples():
    samples = samples_of(3, count=101)
    ranges = channel_ranges(samples)
    for row, low, high in zip(samples.values.sort(1).values, ranges['low_tail'],
                              ranges['high_tail']):
        assert low == pytest.approx(float(row[1])) and high == pytest.approx(float(row[-2]))


@pytest.mark.parametrize('most', [2, 7, 16])
def test_of_many_channels_widest_and_narrowest_are_told(most):
    samples = samples_of(50)
    ranges = channel_ranges(samples, most=most)
    extent = torch.maximum(-samples.low, samples.high)
    assert len(ranges['channel']) == most == len(set(ranges['channel']))
    assert ranges['channel'] == sorted(ranges['channel'])
    assert {int(extent.argmin()), int(extent.argmax())} <= set(ranges['channel'])
    assert ranges['num_channels'] == 50
    for channel, low, high in zip(ranges['channel'], ranges['low'], ranges['high']):
        assert low == float(samples.low[channel]) and high == float(samples.high[channel])


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('symmetry', ['signed', 'asymmetric'])
def test_limits_are_the_outermost_codes(per_channel, symmetry):
    samples = samples_of(9)
    qparams = search_qparams(samples, 4, symmetry=symmetry, per_channel=per_channel)
    ranges = channel_ranges(samples, qparams)
    for name, code in (('clip_low', qparams.quant_min), ('clip_high', qparams.quant_max)):
        limit = dequantize(torch.full((9, 1), code), qparams, channel_dim=0).flatten()
        assert torch.allclose(torch.tensor(ranges[name]), limit)


def test_limits_follow_the_channels_that_are_told():
    samples = samples_of(40)
    tensor = search_qparams(samples, 8, symmetry='signed')
    qparams = channel_qparams(samples, tensor)
    ranges = channel_ranges(samples, qparams, most=5)
    assert ranges['clip_high'] == pytest.approx(
        [float(qparams.scale[channel] * tensor.quant_max) for channel in ranges['channel']])


def test_channels_of_different_widths_have_limits_of_their_own():
    samples, largest = samples_of(6), torch.tensor([1.0, 3, 7, 15, 31, 127])
    qparams = QParams(torch.full((6,), 0.5), torch.zeros(6), -128, 127, channel_max=largest)
    ranges = channel_ranges(samples, qparams)
    assert ranges['clip_high'] == (0.5 * largest).tolist()
    assert ranges['clip_low'] == (-0.5 * (largest + 1)).tolist()


@pytest.mark.parametrize('narrow_range', [True, False])
@pytest.mark.parametrize('num_bits', range(2, 9))
def test_histogram_counts_every_code(num_bits, narrow_range):
    smallest, largest = code_range(num_bits, signed=True, narrow_range=narrow_range)
    codes = torch.randint(smallest, largest + 1, (4, 3, 5, 5),
                          generator=torch.Generator().manual_seed(num_bits)).to(torch.int8)
    counts = Counter(codes.flatten().tolist())
    assert code_histogram(codes, num_bits, narrow_range) == [
        counts[code] for code in range(smallest, largest + 1)]
