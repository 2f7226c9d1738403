"""Searches by a loss alone: parabolas by hand, Powell on coupled numbers, never worse."""

import math

import pytest

from mmbitsplit.functional import powell_minimum, quadratic_minimum


@pytest.mark.parametrize('lowest', [2.2, 3.0, 3.7])
def test_the_lowest_point_of_a_parabola_is_found_exactly(lowest):
    points = (2.0, 2.5, 3.0, 3.5, 4.0)
    assert quadratic_minimum(points, [0.3 + 2 * (p - lowest) ** 2 for p in points]) \
        == pytest.approx(lowest)


@pytest.mark.parametrize(('losses', 'wanted'), [
    ([4.0, 1.0, 0.5], 3.7), ([3.0, 2.0, 1.0], 4.0), ([1.0, 2.0, 1.5], 2.0),
    ([math.nan, 2.0, 1.5], 4.0), ([math.inf] * 3, 2.0)])
def test_it_stays_in_range_and_with_what_was_tried(losses, wanted):
    assert quadratic_minimum((2.0, 3.0, 4.0), losses) == pytest.approx(wanted)


def coupled(point):
    """Lowest at (0.8, 1.25): two scales that must move together."""
    return (point[0] * point[1] - 1) ** 2 + 0.05 * (point[0] - 0.8) ** 2 + 0.1


def test_powell_finds_a_coupled_minimum():
    found = powell_minimum(coupled, [1.0, 1.0], low=0.5, high=2.0, max_iterations=20,
                           max_evaluations=2000, tolerance=1e-4)
    assert found.point == pytest.approx([0.8, 1.25], abs=0.02)
    assert found.loss == pytest.approx(0.1, abs=1e-4) and found.loss == coupled(found.point)


@pytest.mark.parametrize('most', [1, 2, 7, 30])
def test_it_never_ends_worse_than_it_began_nor_asks_more_often(most):
    asked = []

    def loss(point):
        asked.append(list(point))
        return math.nan if len(asked) == 5 else coupled(point)

    found = powell_minimum(loss, [1.0, 1.0], low=0.5, high=2.0, max_iterations=3,
                           max_evaluations=most)
    assert len(asked) == found.evaluations <= most
    assert found.loss <= coupled([1.0, 1.0])
    assert all(0.5 <= number <= 2.0 for point in asked for number in point)
    assert found.point in asked and asked[0] == [1.0, 1.0]
