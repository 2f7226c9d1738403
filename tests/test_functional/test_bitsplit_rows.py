"""Solving from the rows: the same objective as from their sums, and nearly as good an end."""

from dataclasses import replace

import pytest
import torch

from mmbitsplit.functional import (
    add_ridge,
    center,
    code_range,
    default_ridge,
    layer_statistics,
    quadratic_objective,
    round_weight,
    solve_bitsplit,
    solve_bitsplit_rows,
    weight_scale,
)
from mmbitsplit.functional.solvers import bitsplit_rows
from mmbitsplit.structures import RowStatistics

OPTIONS = [{'init': init, 'polish': polish}
           for init in ('error_feedback', 'mse') for polish in (True, False)]
RIDGE = 0.2


def make_rows(seed, *, groups=1, outputs=6, inputs=50, positions=80, mean=0.0, whole=False):
    """Correlated inputs, outputs of slightly different inputs; (rows, weight), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mix = torch.eye(inputs, dtype=torch.float64) + normal(groups, inputs, inputs) / inputs ** 0.5
    x = mix @ normal(groups, inputs, positions) + mean
    x = (30 * x).round().clamp(-3, 252) if whole else x
    weight = normal(groups, outputs, inputs)
    y = weight @ (x + 0.1 * x.std() * normal(*x.shape)) + mean
    return as_rows(x, y, lowest=-3 if whole else None), weight


def as_rows(x, y, **options):
    return RowStatistics(x=x, y=y, x_sum=x.sum(-1), y_sum=y.sum(-1), count=x.shape[-1], **options)


def sums_of(rows, weight, ridge=RIDGE):
    """The sums that ``solve_bitsplit`` would see, ridge and all."""
    sums = layer_statistics(rows.x, rows.y)
    return add_ridge(center(sums) if rows.centred else sums, weight, ridge)


def objective(sums, codes, scale):
    return quadratic_objective(sums.gram, sums.cross, sums.y_sq, codes * scale.unsqueeze(-1))


@pytest.fixture(params=OPTIONS, ids=lambda options: '-'.join(map(str, options.values())))
def options(request):
    return request.param


@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('part', [50, 17])
def test_objective_is_the_one_of_the_whole_gram(part, bits, centred, options):
    rows, weight = make_rows(bits, groups=2, mean=0.7)
    rows = replace(rows, centred=centred)
    solution = solve_bitsplit_rows(rows, weight, bits, ridge=RIDGE, part=part, **options)
    expected = objective(sums_of(rows, weight), solution.codes, solution.scale)
    torch.testing.assert_close(solution.objective, expected, rtol=1e-9, atol=0)
    assert solution.history[-1] == pytest.approx(float(expected.sum()))
    low, high = code_range(bits, signed=True, narrow_range=True)
    assert solution.codes.dtype == torch.int8
    assert solution.codes.shape == weight.shape
    assert low <= solution.codes.min() and solution.codes.max() <= high
    assert (solution.scale > 0).all()
    assert solution.scale.shape == solution.objective.shape == (2, 6)


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('part', [50, 8])
def test_objective_never_rises(part, bits, options):
    rows, weight = make_rows(bits, groups=2)
    solution = solve_bitsplit_rows(rows, weight, bits, ridge=RIDGE, part=part, tolerance=0,
                                   **options)
    history = solution.history
    assert len(history) == solution.num_sweeps + 1 > 2
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(history, history[1:]))
    assert history[-1] < history[0] * (1 - 1e-4)  # and it falls at all


@pytest.mark.parametrize('bits', [2, 3, 4, 6])
@pytest.mark.parametrize('part', [25, 1000, 7])
def test_at_rest_no_single_code_can_be_moved_for_the_better(part, bits):
    rows, weight = make_rows(bits, inputs=25, positions=60)
    solution = solve_bitsplit_rows(rows, weight, bits, ridge=RIDGE, part=part, tolerance=0,
                                   max_rounds=300)
    assert solution.num_sweeps < 300
    sums, (low, high) = sums_of(rows, weight), code_range(bits, signed=True, narrow_range=True)
    best = objective(sums, solution.codes, solution.scale)
    tried = 0
    for column in range(25):
        for move in (-1, 1):
            moved = solution.codes.double()
            moved[..., column] += move
            inside = (low <= moved[..., column]) & (moved[..., column] <= high)
            assert (objective(sums, moved, solution.scale) >= best * (1 - 1e-10))[inside].all()
            tried += int(inside.sum())
    assert tried > 25 * 6


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize(('inputs', 'positions', 'part', 'slack'), [
    (100, 200, 100, 1.015), (100, 200, 25, 1.03), (100, 200, 13, 1.03), (100, 50, 25, 1.06)])
def test_parts_end_near_the_solution_from_the_whole_gram(inputs, positions, part, slack, bits):
    """With more positions than inputs hardly worse; with half as many at most by some percent."""
    ridge, ratios = default_ridge(inputs, positions), []
    for seed in range(4):
        rows, weight = make_rows(seed, outputs=16, inputs=inputs, positions=positions)
        sums = sums_of(rows, weight, ridge)
        whole = solve_bitsplit(sums.gram, sums.cross, weight, bits, y_sq=sums.y_sq)
        parts = solve_bitsplit_rows(rows, weight, bits, ridge=ridge, part=part)
        ratios.append(float(parts.objective.sum() / whole.objective.sum()))
        scale = weight_scale(weight, bits)
        rounded = objective(sums, round_weight(weight, scale, bits), scale)
        assert parts.objective.sum() < 0.95 * rounded.sum()
    assert sum(ratios) / 4 < slack
    assert max(ratios) < slack + 0.02


@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_one_round_over_one_part_is_one_round_of_the_paper(bits, centred):
    """Plain rounding, then every bit plane: from the rows as from their sums."""
    rows, weight = make_rows(0, groups=2, mean=0.7)
    rows = replace(rows, centred=centred)
    sums = sums_of(rows, weight)
    paper = {'init': 'mse', 'polish': False}
    expected = solve_bitsplit(sums.gram, sums.cross, weight, bits, y_sq=sums.y_sq, max_sweeps=1,
                              **paper)
    solution = solve_bitsplit_rows(rows, weight, bits, ridge=RIDGE, part=50, max_rounds=1, **paper)
    assert torch.equal(solution.codes, expected.codes)
    torch.testing.assert_close(solution.scale, expected.scale)
    torch.testing.assert_close(solution.objective, expected.objective)
    assert solution.history == pytest.approx(expected.history[1::2])  # after each fit of the scales


@pytest.mark.parametrize('part', [50, 17])
def test_centred_rows_are_rows_less_their_means(part, options):
    rows, weight = make_rows(1, groups=2, mean=3.0)
    without = as_rows(rows.x - rows.x.mean(-1, keepdim=True),
                      rows.y - rows.y.mean(-1, keepdim=True))
    solutions = [solve_bitsplit_rows(some, weight, 4, ridge=RIDGE, part=part, **options)
                 for some in (replace(rows, centred=True), without, rows)]
    assert torch.equal(solutions[0].codes, solutions[1].codes)
    for name in ('scale', 'objective'):
        torch.testing.assert_close(getattr(solutions[0], name), getattr(solutions[1], name))
    assert not torch.equal(solutions[0].codes, solutions[2].codes)


@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('part', [150, 70])
def test_rows_of_integers_give_the_same_as_real_ones(part, centred):
    rows, weight = make_rows(2, inputs=150, positions=90, mean=1.0, whole=True)
    assert torch.equal(rows.x, rows.x.round())
    rows = replace(rows, centred=centred)
    solutions = [solve_bitsplit_rows(some, weight, 4, ridge=RIDGE, part=part)
                 for some in (rows, replace(rows, lowest=None))]
    assert torch.equal(solutions[0].codes, solutions[1].codes)
    torch.testing.assert_close(solutions[0].objective, solutions[1].objective)


@pytest.mark.parametrize('part', [50, 17])
def test_groups_are_solved_as_if_alone(part, options):
    rows, weight = make_rows(3, groups=2)
    together = solve_bitsplit_rows(rows, weight, 3, ridge=RIDGE, part=part, **options)
    for g in range(2):
        alone = solve_bitsplit_rows(as_rows(rows.x[g:g + 1], rows.y[g:g + 1]), weight[g:g + 1], 3,
                                    ridge=RIDGE, part=part, **options)
        assert torch.equal(alone.codes[0], together.codes[g])
        torch.testing.assert_close(alone.objective[0], together.objective[g])


@pytest.mark.parametrize('tolerance', [0, 1e-2, 5e-2])
@pytest.mark.parametrize('part', [50, 17])
@pytest.mark.parametrize('bits', [2, 4])
def test_output_channels_are_solved_as_if_alone(bits, part, tolerance, options):
    """Some come to rest sooner than others; nobody waits, nobody goes on for another."""
    rows, weight = make_rows(4, outputs=9)
    solve = dict(ridge=RIDGE, part=part, tolerance=tolerance, **options)
    together = solve_bitsplit_rows(rows, weight, bits, **solve)
    for some in (slice(0, 1), slice(2, 9), slice(None, None, 3)):
        fewer = as_rows(rows.x, rows.y[:, some])
        alone = solve_bitsplit_rows(fewer, weight[:, some], bits, **solve)
        assert torch.equal(alone.codes, together.codes[:, some])
        for name in ('scale', 'objective'):
            torch.testing.assert_close(getattr(alone, name), getattr(together, name)[:, some])


def test_parts_may_be_as_small_as_one_input(options):
    rows, weight = make_rows(5, inputs=9, positions=40)
    solution = solve_bitsplit_rows(rows, weight, 3, ridge=RIDGE, part=1, **options)
    scale = weight_scale(weight, 3)
    rounded = objective(sums_of(rows, weight), round_weight(weight, scale, 3), scale)
    assert solution.objective.sum() < rounded.sum()


@pytest.mark.parametrize('init', ['error_feedback', 'mse'])
def test_inputs_that_are_always_zero_keep_their_weights_rounded(init):
    """Only the ridge holds them."""
    rows, weight = make_rows(6, inputs=20)
    x = rows.x.clone()
    x[:, 3:6] = 0
    solution = solve_bitsplit_rows(as_rows(x, rows.y), weight, 4, ridge=RIDGE, part=7, init=init,
                                   tolerance=0, max_rounds=300)
    rounded = round_weight(weight, solution.scale, 4)
    assert torch.equal(solution.codes[..., 3:6].double(), rounded[..., 3:6])
    assert not torch.equal(solution.codes.double(), rounded)
    assert torch.isfinite(solution.objective).all()


def test_channels_without_weights_get_zero_codes(options):
    rows, weight = make_rows(7, inputs=20)
    y, empty = rows.y.clone(), weight.clone()
    y[:, 1], empty[:, 1] = 0, 0
    solution = solve_bitsplit_rows(as_rows(rows.x, y), empty, 4, ridge=RIDGE, part=7, **options)
    assert not solution.codes[:, 1].any()
    assert torch.isfinite(solution.scale).all()
    full = solve_bitsplit_rows(rows, weight, 4, ridge=RIDGE, part=7, **options)
    assert torch.equal(solution.codes[:, 0], full.codes[:, 0])


@pytest.mark.parametrize('centred', [False, True])
def test_float32_rows_end_near_float64_ones(centred, options):
    rows, weight = make_rows(8, outputs=16, mean=1.0)
    rows = replace(rows, centred=centred)
    small = as_rows(rows.x.float(), rows.y.float(), centred=centred)
    exact = solve_bitsplit_rows(rows, weight, 4, ridge=RIDGE, part=17, **options)
    solution = solve_bitsplit_rows(small, weight, 4, ridge=RIDGE, part=17, **options)
    assert solution.scale.dtype == torch.float32
    assert (solution.codes == exact.codes).double().mean() > 0.9
    expected = objective(sums_of(rows, weight), solution.codes, solution.scale.double())
    torch.testing.assert_close(solution.objective, expected, rtol=1e-4, atol=0)


def test_rows_and_weight_are_never_modified(options):
    rows, weight = make_rows(9, groups=2)
    before = [part.clone() for part in (rows.x, rows.y, rows.x_sum, rows.y_sum, weight)]
    for centred in (False, True):
        solve_bitsplit_rows(replace(rows, centred=centred), weight, 3, ridge=RIDGE, part=17,
                            **options)
    assert all(map(torch.equal, before, (rows.x, rows.y, rows.x_sum, rows.y_sum, weight)))


def test_no_more_rounds_than_allowed(options):
    rows, weight = make_rows(10)
    solve = dict(ridge=RIDGE, part=17, tolerance=0, **options)
    assert solve_bitsplit_rows(rows, weight, 4, max_rounds=2, **solve).num_sweeps == 2
    start = solve_bitsplit_rows(rows, weight, 4, max_rounds=0, **solve)
    assert start.num_sweeps == 0
    assert len(start.history) == 1
    torch.testing.assert_close(start.objective, objective(sums_of(rows, weight), start.codes,
                                                          start.scale))


def test_a_whole_gram_is_never_taken(monkeypatch):
    """Parts must be what bounds the memory."""
    sizes = []
    gram = bitsplit_rows.inputs_gram
    monkeypatch.setattr(bitsplit_rows, 'inputs_gram',
                        lambda x, *args: sizes.append(x.shape[1]) or gram(x, *args))
    rows, weight = make_rows(11, inputs=50)
    solve_bitsplit_rows(rows, weight, 4, ridge=RIDGE, part=17)
    assert sizes == [17, 17, 16]


@pytest.mark.parametrize('bits', [1, 9, 4.0])
def test_bits_outside_the_range_are_refused(bits):
    rows, weight = make_rows(0)
    with pytest.raises(ValueError, match='num_bits'):
        solve_bitsplit_rows(rows, weight, bits, ridge=RIDGE)


def test_inputs_that_are_all_zero_get_a_unit_pull(options):
    """As ``add_ridge`` gives them."""
    weight = make_rows(0)[1]
    rows = as_rows(torch.zeros(1, 50, 20).double(), make_rows(0, positions=20)[0].y)
    solution = solve_bitsplit_rows(rows, weight, 4, ridge=RIDGE, part=17, **options)
    expected = objective(sums_of(rows, weight), solution.codes, solution.scale)
    torch.testing.assert_close(solution.objective, expected)
    assert torch.equal(solution.codes.double(), round_weight(weight, solution.scale, 4))


def test_without_a_ridge_error_feedback_is_refused_with_the_next_step():
    """Fewer positions than inputs leave the gram singular."""
    rows, weight = make_rows(0, inputs=50, positions=20)
    with pytest.raises(ValueError, match='ridge'):
        solve_bitsplit_rows(rows, weight, 4, ridge=0.0, part=25)
