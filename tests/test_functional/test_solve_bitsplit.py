"""Properties of the solver: what never rises, what it beats, what it refuses."""

import pytest
import torch

from mmbitsplit.functional import code_range, round_weight, solve_bitsplit, weight_scale
from mmbitsplit.structures import WeightSolution

OPTIONS = [{'init': init, 'polish': polish}
           for init in ('error_feedback', 'mse') for polish in (True, False)]
PAPER = {'init': 'mse', 'polish': False}


def option_name(options):
    return '-'.join(map(str, options.values()))


@pytest.fixture(params=OPTIONS, ids=option_name)
def options(request):
    return request.param


def solve(problem, bits, **options) -> WeightSolution:
    return solve_bitsplit(*problem.solver_inputs, bits, y_sq=problem.sums.y_sq, **options)


def rounding_objective(problem, bits):
    scale = weight_scale(problem.weight, bits)
    return problem.objective(round_weight(problem.weight, scale, bits) * scale.unsqueeze(-1))


@pytest.mark.parametrize('bits', range(2, 9))
def test_objective_never_rises(make_problem, options, bits):
    problem = make_problem(bits, outputs=8, inputs=30, groups=2)
    history = solve(problem, bits, **options).history
    assert len(history) > 2
    slack = 1e-9 * problem.sums.y_sq.sum().item()
    assert all(later <= earlier + slack for earlier, later in zip(history, history[1:],
                                                                  strict=False))
    assert history[-1] < history[0] - slack  # and it falls at all


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_objective_returned_is_that_of_the_codes(make_problem, options, bits):
    problem = make_problem(bits, inputs=70, groups=2)  # more columns than a block
    solution = solve(problem, bits, **options)
    torch.testing.assert_close(solution.objective, problem.objective_of(solution),
                               rtol=1e-8, atol=1e-8 * problem.sums.y_sq.max().item())
    assert solution.history[-1] == pytest.approx(solution.objective.sum().item())


def test_objective_without_y_sq_lacks_only_that_constant(make_problem, options):
    problem = make_problem(0)
    without = solve_bitsplit(*problem.solver_inputs, 3, **options)
    solution = solve(problem, 3, **options)
    assert torch.equal(without.codes, solution.codes)
    torch.testing.assert_close(without.objective + problem.sums.y_sq, solution.objective)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_codes_are_int8_in_the_narrow_range_with_positive_scales(make_problem, options, bits):
    solution = solve(make_problem(bits, outputs=8, inputs=20, groups=2), bits, **options)
    assert solution.codes.dtype == torch.int8
    assert solution.codes.shape == (2, 8, 20)
    assert solution.scale.shape == solution.objective.shape == (2, 8)
    low, high = code_range(bits, signed=True, narrow_range=True)
    assert low <= solution.codes.min()
    assert solution.codes.max() <= high
    assert (solution.scale > 0).all()


@pytest.mark.parametrize('init', ['error_feedback', 'mse'])
@pytest.mark.parametrize('bits', [2, 3, 4, 6])
def test_no_single_code_can_be_moved_for_the_better_after_polish(make_problem, init, bits):
    problem = make_problem(bits, outputs=6, inputs=25)
    solution = solve(problem, bits, init=init, polish=True, max_sweeps=200)
    low, high = code_range(bits, signed=True, narrow_range=True)
    best = problem.objective_of(solution)
    codes, scale = solution.codes.double(), solution.scale.unsqueeze(-1)
    tried = 0
    for column in range(25):
        for move in (-1, 1):
            moved = codes.clone()
            moved[..., column] += move
            inside = (low <= moved[..., column]) & (moved[..., column] <= high)
            assert (problem.objective(moved * scale) >= best * (1 - 1e-10))[inside].all()
            tried += int(inside.sum())
    assert tried > 25 * 6


@pytest.mark.parametrize('bits', range(2, 9))
def test_scale_is_the_best_for_its_codes(make_problem, options, bits):
    problem = make_problem(bits, outputs=6, inputs=12)
    solution = solve(problem, bits, **options)
    codes = solution.codes.double()
    for factor in (0.99, 1.01):
        other = problem.objective(codes * (solution.scale * factor).unsqueeze(-1))
        assert (other > problem.objective_of(solution)).all()


@pytest.mark.parametrize('init', ['error_feedback', 'mse'])
@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_polish_is_not_worse_than_none(make_problem, init, bits):
    """In total; a single channel may come to rest in another place."""
    problem = make_problem(bits, groups=8, outputs=8, inputs=20)
    polished = solve(problem, bits, init=init, polish=True).objective.sum()
    plain = solve(problem, bits, init=init, polish=False).objective.sum()
    assert polished <= plain * 1.001


@pytest.mark.parametrize('inputs', [1, 2, 6, 20, 70])
@pytest.mark.parametrize('bits', range(2, 9))
def test_default_beats_plain_rounding(make_problem, bits, inputs):
    """Over the layer always, and in nearly every channel."""
    problem = make_problem(bits, groups=5, outputs=8, inputs=inputs)
    objective, plain = solve(problem, bits).objective, rounding_objective(problem, bits)
    assert objective.sum() < plain.sum()
    assert (objective <= plain * (1 + 1e-9)).double().mean() >= 0.85


@pytest.mark.parametrize('bits', [3, 4, 5, 6])
def test_default_beats_the_method_as_published(make_problem, bits):
    problem = make_problem(bits, groups=6, outputs=8, inputs=40)
    assert solve(problem, bits).objective.sum() \
        < 0.98 * solve(problem, bits, **PAPER).objective.sum()


@pytest.mark.parametrize('bits', range(2, 9))
def test_mse_starts_from_rounding_and_is_never_worse_than_it(make_problem, bits):
    problem = make_problem(bits, groups=5, outputs=8, inputs=15)
    rounded = rounding_objective(problem, bits)
    solution = solve(problem, bits, **PAPER)
    assert solution.history[0] == pytest.approx(rounded.sum().item())
    assert (solution.objective <= rounded * (1 + 1e-9)).all()  # in every channel
    assert solution.objective.sum() < 0.98 * rounded.sum()


@pytest.mark.parametrize('bits', [2, 4])
def test_groups_are_solved_as_if_alone(make_problem, options, bits):
    problem = make_problem(bits, groups=3, outputs=5, inputs=24)
    together = solve(problem, bits, **options)
    for g in range(3):
        alone = solve_bitsplit(*(part[g:g + 1] for part in problem.solver_inputs), bits, **options)
        assert torch.equal(alone.codes[0], together.codes[g])
        torch.testing.assert_close(alone.scale[0], together.scale[g])


@pytest.mark.parametrize('bits', [2, 4])
def test_output_channels_are_solved_as_if_alone(make_problem, options, bits):
    problem = make_problem(bits, outputs=4, inputs=24)
    together = solve(problem, bits, **options)
    gram, cross, weight = problem.solver_inputs
    for m in range(4):
        alone = solve_bitsplit(gram, cross[:, m:m + 1], weight[:, m:m + 1], bits, **options)
        assert torch.equal(alone.codes[:, 0], together.codes[:, m])


@pytest.mark.parametrize('power', [-20, 20])
def test_units_of_inputs_and_outputs_do_not_matter(make_problem, options, power):
    """x in other units: weight and cross scale along, codes stay the same."""
    problem, factor = make_problem(3, inputs=12), 2.0 ** power
    gram, cross, weight = problem.solver_inputs
    scaled = solve_bitsplit(gram * factor ** 2, cross * factor, weight / factor, 4, **options)
    solution = solve_bitsplit(gram, cross, weight, 4, **options)
    assert torch.equal(scaled.codes, solution.codes)
    torch.testing.assert_close(scaled.scale * factor, solution.scale)


def test_weights_on_the_grid_are_found_again(make_problem, options):
    problem = make_problem(1, inputs=10)
    codes = round_weight(problem.weight, weight_scale(problem.weight, 4, 'minmax'), 4)
    weight = codes * 0.37
    solution = solve_bitsplit(problem.sums.gram, weight @ problem.sums.gram, weight, 4, **options)
    assert torch.equal(solution.codes.double(), codes)
    torch.testing.assert_close(solution.scale, torch.full((1, 4), 0.37, dtype=torch.float64))


@pytest.mark.parametrize('bits', [2, 8])
def test_a_single_input_is_reproduced_exactly(make_problem, options, bits):
    """One weight an output channel: any code but zero does, with the right scale."""
    problem = make_problem(bits, groups=3, inputs=1)
    gram, cross, _ = problem.solver_inputs
    solution = solve(problem, bits, **options)
    torch.testing.assert_close(solution.codes * solution.scale.unsqueeze(-1), cross / gram)


@pytest.mark.parametrize('bits', [2, 4])
def test_channels_without_weights_get_zero_codes(make_problem, options, bits):
    problem = make_problem(bits, outputs=3, inputs=9)
    gram, cross, weight = (part.clone() for part in problem.solver_inputs)
    cross[:, 1], weight[:, 1] = 0, 0
    solution = solve_bitsplit(gram, cross, weight, bits, **options)
    assert torch.equal(solution.codes[:, 1], torch.zeros(1, 9, dtype=torch.int8))
    assert torch.isfinite(solution.scale).all()
    assert torch.equal(solution.codes[:, 0], solve(problem, bits, **options).codes[:, 0])


@pytest.mark.parametrize('polish', [True, False])
def test_a_start_of_the_wrong_sign_is_overcome_with_positive_scales(make_problem, polish):
    """Outputs are opposite to what the weight says, so that the closed-form scale is negative."""
    problem = make_problem(0, inputs=12)
    gram, cross, weight = problem.solver_inputs
    solution = solve_bitsplit(gram, cross, -weight, 4, y_sq=problem.sums.y_sq, init='mse',
                              polish=polish)
    assert (solution.scale > 0).all()
    assert list(solution.history) == sorted(solution.history, reverse=True)
    assert (solution.objective < problem.sums.y_sq).all()  # better than no output at all


def test_dead_inputs_keep_their_rounded_codes(make_problem):
    """Nothing is known about them; only ``init='mse'`` takes such sums without a ridge."""
    problem = make_problem(2, inputs=8, ridge=0)
    gram, cross, weight = (part.clone() for part in problem.solver_inputs)
    gram[:, 3], gram[:, :, 3], cross[..., 3] = 0, 0, 0
    solution = solve_bitsplit(gram, cross, weight, 4, init='mse')
    rounded = round_weight(weight, weight_scale(weight, 4), 4)
    assert torch.equal(solution.codes[..., 3].double(), rounded[..., 3])
    assert torch.isfinite(solution.objective).all()


def test_sums_and_weight_are_never_modified(make_problem, options):
    problem = make_problem(0, groups=2, inputs=10)
    before = [part.clone() for part in problem.solver_inputs]
    solve(problem, 3, **options)
    assert all(map(torch.equal, before, problem.solver_inputs))


def test_layout_and_dtype_of_the_weight_do_not_matter(make_problem, options):
    problem = make_problem(0, inputs=10)
    gram, cross, weight = problem.solver_inputs
    expected = solve_bitsplit(gram, cross, weight.float().double(), 4, **options)
    strided = [part.mT.contiguous().mT for part in (gram, cross, weight.float())]
    solution = solve_bitsplit(*strided, 4, **options)
    assert torch.equal(solution.codes, expected.codes)


def test_more_sweeps_than_allowed_are_never_taken(make_problem, options):
    solution = solve(make_problem(0, inputs=40), 4, max_sweeps=1, **options)
    assert solution.num_sweeps <= 3 + (1 if options['polish'] else 0)  # 3 planes, 1 polish
    assert solution.num_sweeps >= 3


def test_a_singular_gram_is_refused_by_error_feedback_with_the_next_step(make_problem):
    problem = make_problem(0)
    gram, cross, weight = (part.clone() for part in problem.solver_inputs)
    gram[:, 2], gram[:, :, 2], cross[..., 2] = 0, 0, 0
    with pytest.raises(ValueError, match='not positive definite.*add_ridge'):
        solve_bitsplit(gram, cross, weight, 4)


@pytest.mark.parametrize('bits', [1, 9, 4.0, True, '4'])
def test_bits_outside_the_range_are_refused(make_problem, bits):
    with pytest.raises(ValueError, match='num_bits'):
        solve(make_problem(0), bits)


def test_an_unknown_start_is_refused_with_the_nearest(make_problem):
    with pytest.raises(ValueError, match="init='mes'.*mse"):
        solve(make_problem(0), 4, init='mes')


@pytest.mark.parametrize('spoil', [
    lambda gram, cross, weight: (gram[0], cross, weight),
    lambda gram, cross, weight: (gram[..., :-1], cross, weight),
    lambda gram, cross, weight: (gram, cross[..., :-1], weight[..., :-1]),
    lambda gram, cross, weight: (gram, cross, weight[:, :-1]),
    lambda gram, cross, weight: (gram, cross[0], weight[0]),
    lambda gram, cross, weight: (gram[:1], cross, weight)])
def test_shapes_that_do_not_fit_are_refused(make_problem, spoil):
    problem = make_problem(0, groups=2)
    with pytest.raises(ValueError, match=r'\(G, N, N\).*\(G, M, N\).*got'):
        solve_bitsplit(*spoil(*problem.solver_inputs), 4)


@pytest.mark.parametrize('tolerance', [0, 1e-3, 0.05])
@pytest.mark.parametrize('bits', [2, 3, 6])
def test_company_changes_nothing_of_a_channel(make_problem, options, bits, tolerance):
    """Channels come to rest at different times; each ends its stages by itself alone."""
    problem = make_problem(bits, outputs=40, inputs=60, positions=90, groups=2)
    gram, cross, weight = problem.solver_inputs
    # Channels that are on the grid already come to rest at once.
    weight[:, 1::4] = round_weight(weight, weight_scale(weight, bits), bits)[:, 1::4]
    cross[:, 1::4] = (weight @ gram)[:, 1::4]
    together = solve_bitsplit(gram, cross, weight, bits, tolerance=tolerance, **options)
    sweeps = set()
    for some in (slice(0, 1), slice(1, 2), slice(2, 40, 5), slice(17, 40)):
        part = solve_bitsplit(gram, cross[:, some], weight[:, some], bits, tolerance=tolerance,
                              **options)
        sweeps.add(part.num_sweeps)
        assert torch.equal(part.codes, together.codes[:, some])
        for name in ('scale', 'objective'):
            torch.testing.assert_close(getattr(part, name), getattr(together, name)[:, some])
    assert len(sweeps) > 1 or tolerance == 0.05  # or the test would show nothing
    assert max(sweeps) <= together.num_sweeps


@pytest.mark.parametrize('bits', [2, 4])
def test_a_higher_tolerance_ends_sooner_on_the_same_way(make_problem, options, bits):
    """What is left undone would only have lowered the objective, in every channel."""
    problem = make_problem(bits, outputs=20, inputs=80)
    exact = solve(problem, bits, tolerance=0, max_sweeps=200, **options)
    early = solve(problem, bits, tolerance=0.05, max_sweeps=200, **options)
    assert early.num_sweeps < exact.num_sweeps
    assert (exact.objective <= early.objective * (1 + 1e-12)).all()
    assert early.objective.sum() < min(early.history[0], rounding_objective(problem, bits).sum())
