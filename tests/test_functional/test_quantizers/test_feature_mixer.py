"""The mixer of features against three lines of NumPy."""

import numpy as np
import pytest
import torch

from mmbitsplit.functional.quantizers.feature_mixer import CASES, FeatureMixer
from mmbitsplit.functional.quantizers.random_drop import RandomDrop


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 5, 6, generator=generator)  # low, middle, high, float


def places(shape, probability, seed, drawn=None):
    """Where elements are replaced, as the mixer draws them from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    if drawn is not None:
        drawn.append(int(torch.randint(3, (), generator=generator)))
    kept = RandomDrop(probability, generator)(torch.ones(shape), lambda: torch.zeros(shape))
    return kept.numpy() == 0


@pytest.mark.parametrize('seed', range(3))
def test_the_third_case_is_the_papers_formula(features, seed):
    mix = FeatureMixer('case3', (0.2, 0.3, 0.5), 0.4)
    found = mix(features[:3], lambda: features[3], torch.Generator().manual_seed(seed))
    low, middle, high, plain = features.numpy()
    wanted = np.where(places(low.shape, 0.4, seed), plain, 0.2 * low + 0.3 * middle + 0.5 * high)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_the_second_case_adds_middle_and_high_and_has_the_low_one_in_places(features, seed):
    mix = FeatureMixer('case2', (0.2, 0.3, 0.5), 0.4)
    found = mix(features[:3], lambda: pytest.fail('float is asked for'),
                torch.Generator().manual_seed(seed))
    low, middle, high, _ = features.numpy()
    wanted = np.where(places(low.shape, 0.4, seed), low, (0.3 * middle + 0.5 * high) / 0.8)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_the_first_case_has_one_of_the_three_and_float_in_places(features):
    seen = set()
    for seed in range(12):
        drawn = []
        replaced = places(features.shape[1:], 0.4, seed, drawn)
        found = FeatureMixer('case1', probability=0.4)(
            features[:3], lambda: features[3], torch.Generator().manual_seed(seed))
        np.testing.assert_array_equal(
            found.numpy(), np.where(replaced, features[3].numpy(), features[drawn[0]].numpy()))
        seen |= {*drawn}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize('case', CASES)
def test_features_that_are_alike_are_mixed_into_themselves(features, case):
    """Whatever the weights sum to: a mix is as large as its parts."""
    same = features[:1].expand(3, -1, -1, -1)
    found = FeatureMixer(case, (0.5, 1.0, 2.5))(same, lambda: features[0],
                                                torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, features[0])
