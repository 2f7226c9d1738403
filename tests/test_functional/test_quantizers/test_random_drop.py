"""Elements that are left unquantized at random."""

import pytest
import torch

from mmbitsplit.functional.quantizers.random_drop import RandomDrop


def drop(probability, seed=0, calls=1, size=20000):
    masks = RandomDrop(probability, torch.Generator().manual_seed(seed))
    return [masks(torch.ones(size), lambda: torch.zeros(size)) for _ in range(calls)]


def test_masks_are_those_of_the_seed_and_each_call_has_its_own():
    first, second = drop(0.5, calls=2)
    again = drop(0.5, calls=2)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second) and not torch.equal(first, drop(0.5, seed=1)[0])


@pytest.mark.parametrize('probability', [0.0, 0.2, 1.0])
def test_as_many_are_left_as_are_told(probability):
    (kept,) = drop(probability)
    assert float(kept.mean()) == pytest.approx(1 - probability, abs=0.02 * (0 < probability < 1))


def test_two_drops_of_one_generator_differ():
    generator = torch.Generator().manual_seed(0)
    one, other = (RandomDrop(0.5, generator)(torch.ones(100), lambda: torch.zeros(100))
                  for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize('probability', [-0.1, 1.1, float('nan')])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match='probability=.*from 0 .*to 1'):
        RandomDrop(probability, torch.Generator())
