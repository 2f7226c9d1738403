"""Entropy calibration: the slides' example, its definition bin by bin, and known histograms."""

import math

import pytest
import torch

from mmbitsplit.functional import entropy_threshold
from mmbitsplit.functional.quantizers.entropy import best_number_of_bins, divergences


def defined_divergence(counts, kept, levels):
    """As the slides put it, one histogram and one clipping at a time."""
    reference = [float(count) for count in counts[:kept]]
    candidate = [0.0] * kept
    reference[-1] += float(sum(counts[kept:]))
    for level in range(levels):
        part = [k for k in range(kept) if k * levels // kept == level]
        filled = [k for k in part if reference[k] > 0]
        for k in filled:
            candidate[k] = sum(float(counts[j]) for j in part) / len(filled)
    total, other = sum(reference), sum(candidate)
    if any(p > 0 and q == 0 for p, q in zip(reference, candidate)):
        return math.inf
    return sum(p / total * math.log(p / total / (q / other))
               for p, q in zip(reference, candidate) if p > 0)


def test_the_example_of_the_slides():
    """[1 0 2 3 | 5 3 1 7] in two levels becomes [2 0 2 2 | 4 4 4 4]."""
    counts = torch.tensor([1.0, 0, 2, 3, 5, 3, 1, 7])
    candidate = [2.0, 0, 2, 2, 4, 4, 4, 4]
    wanted = sum(p / 22 * math.log(p / q) for p, q in zip(counts.tolist(), candidate) if p)
    assert float(divergences(counts, torch.tensor([8]), 2)) == pytest.approx(wanted)


@pytest.mark.parametrize('levels', [4, 8, 16])
@pytest.mark.parametrize('seed', range(4))
def test_all_clippings_at_once_are_the_definition(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(20 * torch.rand(64, generator=generator) ** 3, generator=generator)
    kept = torch.arange(levels, 65)
    found = divergences(counts, kept, levels).tolist()
    wanted = [defined_divergence(counts.tolist(), int(bins), levels) for bins in kept]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert best_number_of_bins(counts, levels) == int(kept[wanted.index(min(wanted))])


def test_values_on_a_grid_keep_their_range():
    """What comes of few codes: far apart, nothing near zero. All in one bin diverges nowhere."""
    values = torch.arange(1, 120).repeat(50).view(1, -1) / 120
    counts = torch.histc(values.double(), 2048, 0, 1)
    first = int(counts.nonzero()[0]) + 1
    assert float(divergences(counts, torch.tensor([first]), 8)) == pytest.approx(0, abs=1e-12)
    assert float(entropy_threshold(values, 8)) > 0.3


def test_known_histograms():
    even = torch.full((256,), 7.0)
    assert best_number_of_bins(even, 16) == 256  # nothing to gain by clipping, much to lose
    ramp = 10.0 * torch.arange(128, 0, -1)
    far = torch.cat([ramp, torch.zeros(127), torch.ones(1)])
    assert 110 < best_number_of_bins(far, 16) <= 130  # one value far out is given up
    kept = torch.tensor([128, 256])
    near_end, whole = divergences(far, kept, 16).tolist()
    assert near_end < 0.5 * whole


def test_threshold_of_values_with_an_outlier():
    values = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 4.0
    with_outlier, without = entropy_threshold(values, 128).tolist()
    assert without == pytest.approx(1.0, abs=0.02)
    assert with_outlier == pytest.approx(1.0, abs=0.05)


def test_zeros_do_not_count_and_signs_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 50_000, generator=generator)
    many_zeros = torch.cat([normal, torch.zeros(1, 50_000)], 1)
    assert torch.equal(entropy_threshold(normal, 128), entropy_threshold(-normal, 128))
    assert float(entropy_threshold(many_zeros, 128)) == pytest.approx(
        float(entropy_threshold(normal, 128)), rel=0.05)
    assert entropy_threshold(torch.zeros(3, 10), 16).tolist() == [0, 0, 0]


def test_fewer_levels_clip_more():
    values = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    thresholds = [float(entropy_threshold(values, levels)) for levels in (4, 16, 128)]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] <= float(values.abs().max())
