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
    statistics,
)
from mmbitsplit.functional.kernels.exact_sums import (
    LEAST_INPUTS_FOR_INTEGERS,
    STRIP,
    Bytes,
    SumGrid,
    integer_gram,
    integer_products,
    on_grid,
)
from mmbitsplit.functional.statistics import (
    LEAST_INPUTS_FOR_SYRK,
    MOST_INPUTS_IN_DOUBLE,
    cancels,
    inputs_gram,
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
    center, lambda sums: add_ridge(sums, torch.ones(2, 3, 4))])
def test_sums_are_never_changed_in_place(data, change):
    x, y, _ = data
    sums = layer_statistics(x, y)
    change(sums)
    assert_same_sums(sums, layer_statistics(x, y))


def integers(inputs, positions, lowest, highest=None, seed=0):
    """(1, N, K) float32 codes less a zero point, mostly zeros, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    highest = lowest + 255 if highest is None else highest
    x = torch.randint(lowest, highest + 1, (1, inputs, positions), generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.7] = 0
    x[0, 0, :2] = torch.tensor([lowest, highest])  # both ends occur
    return x.float()


def exact_gram(x):
    """Float64 holds every sum of products of integers below 2^53."""
    x = x.double()
    return x @ x.mT


@pytest.fixture
def integer_calls(monkeypatch):
    """Collects the arguments of every integer gram."""
    calls = []

    def noted(*args):
        calls.append(args)
        return integer_gram(*args)

    monkeypatch.setattr(statistics, 'integer_gram', noted)
    return calls


@pytest.mark.parametrize('lowest', [0, -128, -3, -255])
@pytest.mark.parametrize(('inputs', 'positions'), [
    (1, 1), (70, 0), (7, 300), (64, 3000), (STRIP - 1, 40), (STRIP, 40), (STRIP + 1, 40),
    (1300, 33)])
def test_an_integer_gram_is_exact(inputs, positions, lowest):
    x = integers(inputs, max(2, positions), lowest)[..., :positions]
    before = x.clone()
    gram = integer_gram(Bytes.of(x, lowest), torch.float64)
    assert gram.dtype == torch.float64
    assert torch.equal(gram, exact_gram(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize('positions', [0, 300, 33026])
@pytest.mark.parametrize('inputs', [7, 64, STRIP + 1])
def test_every_input_may_have_a_lowest_of_its_own(inputs, positions):
    """Zero points that differ by channel."""
    generator = torch.Generator().manual_seed(1)
    positions = min(positions, 2 ** 21 // inputs)
    lowest = torch.randint(-255, 1, (1, inputs, 1), generator=generator)
    x = (lowest + torch.randint(0, 256, (1, inputs, positions), generator=generator)).float()
    found = Bytes.of(x, lowest)
    assert torch.equal(found.value_sums, x.double().sum(-1))
    assert torch.equal(integer_gram(found, torch.float64), exact_gram(x))
    assert torch.equal(integer_gram(found, torch.float32), exact_gram(x).float())
    y = normal(1, 3, positions)
    grid = SumGrid.of(torch.full((1, 3, 1), 8.0), None)
    sums = layer_statistics(x, y, lowest=lowest, grid=grid)
    rounded = on_grid(y, grid.y)
    assert torch.equal(sums.cross, rounded @ x.double().mT)
    assert torch.equal(sums.gram, exact_gram(x))
    assert torch.equal(sums.x_sum, x.double().sum(-1))


@pytest.mark.parametrize(('lowest', 'highest'), [(0, 255), (0, 15), (0, 3), (-8, 7), (-3, 252)])
def test_an_integer_gram_in_float32_is_the_exact_one_rounded_once(lowest, highest):
    """Few bits give small sums: what was shifted must not leave its own rounding in them."""
    x = integers(70, 14336, lowest, highest)
    assert torch.equal(integer_gram(Bytes.of(x, lowest), torch.float32), exact_gram(x).float())


@pytest.mark.parametrize('value', [0, 255])
@pytest.mark.parametrize('positions', [33025, 33026, 2 ** 17 - 1])
def test_the_longest_integer_sums_do_not_overflow(value, positions):
    """The first sum of 255 times 255 is the largest that is below 2^31."""
    x = torch.full((1, LEAST_INPUTS_FOR_INTEGERS, positions), float(value))
    expected = torch.full((1, 64, 64), positions * value ** 2, dtype=torch.float64)
    assert torch.equal(integer_gram(Bytes.of(x, 0), torch.float64), expected)


@pytest.mark.parametrize(('shape', 'answer'), [
    ((1, 64, 10), True), ((1, 63, 10), False), ((2, 64, 10), False),
    ((1, 64, 2 ** 17 - 1), True), ((1, 64, 2 ** 17), False)], ids=str)
def test_which_inputs_are_multiplied_as_integers(shape, answer, integer_calls):
    """Not so many positions that a sum could overflow, and only where it pays."""
    x = torch.full((1, 1, 1), 255.0).expand(shape)
    assert integer_products(x) == answer
    gram = inputs_gram(x, 0, torch.float64)
    assert bool(integer_calls) == answer
    expected = torch.tensor(shape[2] * 255.0 ** 2, dtype=torch.float64).expand_as(gram)
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize('lowest', [0, -128, -3, -255])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('inputs', [70, LEAST_INPUTS_FOR_SYRK + 2, MOST_INPUTS_IN_DOUBLE + 1])
def test_sums_of_integers_are_those_of_real_values(inputs, dtype, lowest):
    x = integers(inputs, 90, lowest).to(dtype)
    y = normal(1, 3, 90, seed=1).to(dtype)
    whole = layer_statistics(x, y, lowest=lowest)
    for name in FIELDS:
        kept = torch.float64 if inputs <= MOST_INPUTS_IN_DOUBLE else dtype
        assert getattr(whole, name).dtype == kept
    assert_same_sums(whole, layer_statistics(x, y))
    if dtype == torch.float64:
        assert torch.equal(whole.gram, exact_gram(x))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(1, LEAST_INPUTS_FOR_SYRK - 1, 20),
                                   (1, LEAST_INPUTS_FOR_SYRK, 20), (2, 600, 20), (1, 600, 0)],
                         ids=str)
def test_a_gram_of_real_values(shape, dtype, integer_calls):
    """Large ones are taken by a routine for symmetric products."""
    x = normal(*shape).to(dtype)
    gram = inputs_gram(x, None, torch.float64)
    assert gram.dtype == torch.float64
    size = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(gram, exact_gram(x), rtol=10 * size, atol=20 * size)
    if shape[:2] == (1, LEAST_INPUTS_FOR_SYRK):
        assert torch.equal(gram, gram.mT)
    assert not integer_calls


def test_a_gram_of_inputs_that_are_not_contiguous():
    x = normal(600, 30).T.contiguous().T.unsqueeze(0)
    for part in (x, x[:, 20:], x[..., ::2]):
        torch.testing.assert_close(inputs_gram(part, None, torch.float64), exact_gram(part))
    whole = integers(600, 30, -3)
    for part in (whole.mT.contiguous().mT, whole[:, 20:], whole[..., ::2]):
        assert torch.equal(integer_gram(Bytes.of(part, -3), torch.float64), exact_gram(part))


@pytest.mark.parametrize('spread, lost', [(30.0, False), (0.05, True)])
def test_sums_say_where_means_would_take_all_digits_along(spread, lost):
    x = (200 + spread * normal(1, MOST_INPUTS_IN_DOUBLE + 1, 900)).float()
    sums = layer_statistics(x, normal(1, 1, 900).float())
    assert cancels(sums) == lost
    assert not cancels(layer_statistics(x.double(), normal(1, 1, 900)))
