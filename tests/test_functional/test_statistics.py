"""Sums equal their formulas, add up, and say about a solution what the data says."""

import pytest
import torch

from mmbitsplit.functional import (
    add_ridge,
    bias_correction,
    center,
    default_ridge,
    layer_statistics,
    quadratic_objective,
    rescale_inputs,
)

FIELDS = ('gram', 'cross', 'y_sq', 'x_sum', 'y_sum')


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def data():
    """x (G, N, K) with a mean, y (G, M, K) with another, some weight (G, M, N)."""
    return normal(2, 4, 30) + 1.5, normal(2, 3, 30, seed=1) - 0.7, normal(2, 3, 4, seed=2)


def assert_same_sums(actual, expected):
    for name in FIELDS:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))
    assert actual.count == expected.count


def objective(sums, weight):
    return quadratic_objective(sums.gram, sums.cross, sums.y_sq, weight)


def test_sums_equal_their_formulas_position_by_position(data):
    x, y, _ = data
    sums = layer_statistics(x, y)
    gram, cross, y_sq = torch.zeros(2, 4, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3)
    gram, cross, y_sq = gram.double(), cross.double(), y_sq.double()
    for g in range(2):
        for k in range(30):
            gram[g] += torch.outer(x[g, :, k], x[g, :, k])
            cross[g] += torch.outer(y[g, :, k], x[g, :, k])
            y_sq[g] += y[g, :, k] ** 2
    torch.testing.assert_close(sums.gram, gram)
    torch.testing.assert_close(sums.cross, cross)
    torch.testing.assert_close(sums.y_sq, y_sq)
    torch.testing.assert_close(sums.x_sum, x.sum(2))
    torch.testing.assert_close(sums.y_sum, y.sum(2))
    assert sums.count == 30


def test_sums_of_float32_data_are_kept_in_float64(data):
    x, y, _ = data
    sums = layer_statistics(x.float(), y.float())
    assert {getattr(sums, name).dtype for name in FIELDS} == {torch.float64}


def test_sums_of_two_halves_add_up(data):
    x, y, _ = data
    halves = layer_statistics(x[..., :11], y[..., :11]) + layer_statistics(x[..., 11:], y[..., 11:])
    assert_same_sums(halves, layer_statistics(x, y))


def test_objective_is_the_squared_output_error(data):
    x, y, weight = data
    torch.testing.assert_close(objective(layer_statistics(x, y), weight),
                               (y - weight @ x).square().sum(-1))


def test_centred_objective_is_the_one_with_the_best_bias(data):
    x, y, weight = data
    error = y - weight @ x
    best_bias = error.mean(-1, keepdim=True)
    torch.testing.assert_close(objective(center(layer_statistics(x, y)), weight),
                               (error - best_bias).square().sum(-1))


def test_centred_sums_solve_least_squares_with_a_free_bias(data):
    x, y, _ = data
    sums = center(layer_statistics(x, y))
    weight = torch.linalg.solve(sums.gram, sums.cross.mT).mT
    bias = bias_correction(sums, weight)
    for g in range(2):
        columns = torch.cat([x[g], torch.ones(1, 30, dtype=torch.float64)]).T  # (K, N + 1)
        expected = torch.linalg.lstsq(columns, y[g].T).solution.T
        torch.testing.assert_close(weight[g], expected[:, :-1])
        torch.testing.assert_close(bias[g], expected[:, -1])


@pytest.mark.parametrize('prepare', [lambda sums: sums, center], ids=['raw', 'centred'])
def test_bias_correction_makes_mean_errors_zero(data, prepare):
    x, y, weight = data
    bias = bias_correction(prepare(layer_statistics(x, y)), weight)
    error = y - weight @ x - bias.unsqueeze(-1)
    torch.testing.assert_close(error.mean(-1), torch.zeros(2, 3, dtype=torch.float64))


def test_rescaled_sums_are_the_sums_of_rescaled_inputs(data):
    x, y, _ = data
    factor = normal(2, 4, seed=3)
    assert_same_sums(rescale_inputs(layer_statistics(x, y), factor),
                     layer_statistics(x * factor.unsqueeze(-1), y))


def test_ridge_adds_the_squared_distance_to_the_float_weight(data):
    x, y, weight = data
    sums = layer_statistics(x, y)
    other = normal(2, 3, 4, seed=4)
    strength = 0.3 * sums.gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)  # one a group
    torch.testing.assert_close(
        objective(add_ridge(sums, weight, 0.3), other),
        objective(sums, other) + strength * (other - weight).square().sum(-1))


def test_default_ridge_falls_with_the_positions_of_an_input_between_bounds():
    strengths = [default_ridge(10, count) for count in (1, 10, 20, 50, 100, 200, 10 ** 6)]
    assert strengths == sorted(strengths, reverse=True)
    assert 0 < strengths[-1] < strengths[0] < 1
    assert default_ridge(10, 100) == default_ridge(30, 300)


def test_default_ridge_is_what_add_ridge_takes(data):
    x, y, weight = data
    sums = layer_statistics(x, y)
    assert_same_sums(add_ridge(sums, weight), add_ridge(sums, weight, default_ridge(4, 30)))


def test_ridge_makes_rank_deficient_sums_solvable_and_keeps_an_exact_weight():
    x, weight = normal(1, 9, 4), normal(1, 3, 9, seed=1)  # 4 positions, 9 inputs
    sums = layer_statistics(x, weight @ x)
    assert torch.linalg.matrix_rank(sums.gram) == 4
    ridged = add_ridge(sums, weight)
    torch.linalg.cholesky(ridged.gram)  # fails unless positive definite
    torch.testing.assert_close(torch.linalg.solve(ridged.gram, ridged.cross.mT).mT, weight)


def test_ridge_of_an_input_that_is_always_zero_is_a_unit_pull():
    x, weight = torch.zeros(1, 2, 5), torch.tensor([[[3.0, -4.0]]])
    sums = add_ridge(layer_statistics(x, torch.zeros(1, 1, 5)), weight, 0.01)
    assert torch.equal(sums.gram, 0.01 * torch.eye(2, dtype=torch.float64).unsqueeze(0))
    assert objective(sums, weight.double()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('change', [
    center, lambda sums: add_ridge(sums, torch.ones(2, 3, 4)),
    lambda sums: rescale_inputs(sums, torch.full((2, 4), 2.0))])
def test_sums_are_never_changed_in_place(data, change):
    x, y, _ = data
    sums = layer_statistics(x, y)
    change(sums)
    assert_same_sums(sums, layer_statistics(x, y))
