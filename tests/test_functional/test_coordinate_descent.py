"""Compiled and plain inner loops agree; a blocked sweep is an element-by-element one."""

import pytest
import torch

from mmbitsplit.functional.solvers.coordinate_descent import sweep_, sweep_by_blocks_
from mmbitsplit.functional.solvers.error_feedback import (
    FeedbackFactor,
    feedback_loop,
    feedback_loop_torch,
)

PLANE = {'step': 4.0, 'low': -1.0, 'high': 1.0}
CODES = {'step': 1.0, 'low': -7.0, 'high': 7.0}


def random_block(seed, groups=2, rows=3, columns=20):
    """Rows to round (G, M, B) and a gram (G, B, B)."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(groups, columns, 2 * columns, generator=generator, dtype=torch.float64)
    block = 4 * torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return block, half @ half.mT


@pytest.mark.parametrize('sweep', [sweep_, sweep_by_blocks_])
@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
def test_nothing_moves_where_nothing_is_known(make_problem, lattice, sweep):
    problem = make_problem(0, inputs=20)
    gram, cross, _ = problem.solver_inputs
    gram[:, 5], gram[:, :, 5] = 0, 0
    values, closed = torch.ones_like(cross), torch.zeros(1, 4, dtype=torch.bool)
    sweep(values, values @ gram, cross / 0.3, gram, closed=closed, **lattice)
    assert (values[..., 5] == 1).all()
    assert not (values == 1).all()


@pytest.mark.parametrize('seed', range(5))
def test_numba_loops_and_plain_error_feedback_agree(seed):
    block, gram = random_block(seed)
    gram = gram + torch.eye(20, dtype=torch.float64)
    factor = torch.linalg.cholesky(gram, upper=True)
    scale = torch.full((2, 3), 0.8, dtype=torch.float64)
    left = [block.clone(), block.clone()]
    codes = [torch.empty_like(block), torch.empty_like(block)]
    for loop, rest, rounded in zip((feedback_loop, feedback_loop_torch), left, codes):
        loop(rest, rounded, scale, factor, -7.0, 7.0)
    assert torch.equal(*codes)
    torch.testing.assert_close(*left)
    assert codes[0].abs().max() == 7
    assert torch.equal(codes[0], codes[0].round())


def test_error_feedback_with_a_diagonal_gram_is_plain_rounding(make_problem):
    """Inputs that have nothing to do with each other cannot make good one another's errors."""
    problem = make_problem(0, inputs=70)
    gram = torch.diag_embed(problem.sums.gram.diagonal(dim1=1, dim2=2))
    scale = torch.full((1, 4), 0.4, dtype=torch.float64)
    codes = FeedbackFactor(gram, problem.weight @ gram).round(scale, 4)
    assert torch.equal(codes, (problem.weight / 0.4).round().clamp(-7, 7))


@pytest.mark.parametrize('inputs', [1, 12, 80])
def test_error_feedback_refits_the_open_columns_after_every_rounding(make_problem, inputs):
    """By definition: with the rounded columns fixed, least squares over those still open."""
    problem = make_problem(1, inputs=inputs, groups=2)
    gram, cross, _ = problem.solver_inputs
    scale = torch.full((2, 4), 0.3, dtype=torch.float64)
    codes = FeedbackFactor(gram, cross).round(scale, 4)
    for g in range(2):
        order = gram[g].diagonal().argsort(descending=True, stable=True)
        fixed = torch.zeros(4, inputs, dtype=torch.float64)
        for position, column in enumerate(order):
            still_open = order[position:]
            aim = cross[g] - 0.3 * fixed @ gram[g]
            refit = torch.linalg.solve(gram[g][still_open][:, still_open], aim[:, still_open].mT).mT
            fixed[:, column] = (refit[:, 0] / 0.3).round().clamp(-7, 7)
        assert torch.equal(codes[g], fixed)


@pytest.mark.parametrize('seed', range(3))
def test_error_feedback_beats_rounding_its_target(make_problem, seed):
    problem = make_problem(seed, outputs=16, inputs=80)
    gram, cross, _ = problem.solver_inputs
    scale = torch.full((1, 16), 0.4, dtype=torch.float64)
    fed = FeedbackFactor(gram, cross).round(scale, 4)
    target = torch.linalg.solve(gram, cross.mT).mT
    rounded = (target / 0.4).round().clamp(-7, 7)
    assert problem.objective(fed * 0.4).sum() < 0.8 * problem.objective(rounded * 0.4).sum()


def visit_one_by_one(values, codes, target, gram, step, low, high):
    """Each element in turn, residual computed anew from all codes."""
    values, codes = values.clone(), codes.clone()
    for k in range(values.shape[-1]):
        residual = target[k] - codes @ gram[k]
        new = (values[k] + residual / (step * gram[k, k])).round().clamp(low, high)
        codes[k] += (new - values[k]) * step
        values[k] = new
    return values, codes


@pytest.mark.parametrize('inputs', [1, 63, 64, 65, 150])
@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
def test_a_sweep_visits_elements_one_after_another(make_problem, inputs, lattice):
    problem = make_problem(inputs, outputs=2, inputs=inputs, groups=2)
    gram, cross, _ = problem.solver_inputs
    target = cross / 0.3
    values = torch.zeros_like(cross)
    product = torch.zeros_like(cross)
    moved = sweep_(values, product, target, gram, **lattice)
    for g in range(2):
        for m in range(2):
            expected, codes = visit_one_by_one(
                torch.zeros(inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64),
                target[g, m], gram[g], **lattice)
            assert torch.equal(values[g, m], expected)
            torch.testing.assert_close(product[g, m], codes @ gram[g])  # kept up to date
    assert torch.equal(moved, torch.count_nonzero(values, dim=-1))


@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
def test_a_sweep_moves_nothing_from_a_place_of_rest(make_problem, lattice):
    problem = make_problem(0, inputs=100)
    gram, cross, _ = problem.solver_inputs
    values, product = torch.zeros_like(cross), torch.zeros_like(cross)
    target = cross / 0.3
    for _ in range(100):
        if not sweep_(values, product, target, gram, **lattice).any():
            break
    at_rest = values.clone()
    assert not sweep_(values, product, target, gram, **lattice).any()
    assert torch.equal(values, at_rest)
    assert at_rest.any()


@pytest.mark.parametrize('sweep', [sweep_, sweep_by_blocks_])
@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
def test_closed_rows_stay_and_the_others_do_not_notice(make_problem, lattice, sweep):
    problem = make_problem(3, inputs=130, outputs=5, groups=2)
    gram, cross, _ = problem.solver_inputs
    target, closed = cross / 0.3, torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]).bool()
    free, held = torch.zeros_like(cross), torch.zeros_like(cross)
    free_product, held_product = torch.zeros_like(cross), torch.zeros_like(cross)
    nothing = torch.zeros_like(closed)
    moved_free = sweep(free, free_product, target, gram, closed=nothing, **lattice)
    moved = sweep(held, held_product, target, gram, closed=closed, **lattice)
    assert not held[closed].any() and not held_product[closed].any() and not moved[closed].any()
    assert torch.equal(held[~closed], free[~closed])
    assert torch.equal(moved[~closed], moved_free[~closed])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
@pytest.mark.parametrize('seed', range(3))
def test_numba_loops_and_plain_sweeps_agree(make_problem, lattice, seed, dtype):
    """Blocks in plain torch are what runs on other devices."""
    problem = make_problem(seed, inputs=150, outputs=20, groups=2)
    gram, cross = problem.sums.gram.to(dtype), problem.sums.cross.to(dtype)
    target, closed = cross / 0.3, torch.zeros(2, 20, dtype=torch.bool)
    values = [torch.zeros_like(cross) for _ in range(2)]
    products = [torch.zeros_like(cross) for _ in range(2)]
    for _ in range(3):
        moved = sweep_(values[0], products[0], target, gram, **lattice)
        plain = sweep_by_blocks_(values[1], products[1], target, gram, closed=closed, **lattice)
        assert torch.equal(moved, plain)
    assert torch.equal(*values)
    size = products[0].abs().max()
    torch.testing.assert_close(products[0] / size, products[1] / size)


@pytest.mark.parametrize('rows, threads', [(3, 2), (200, 2), (200, 1)])
def test_threads_do_not_change_a_sweep(make_problem, rows, threads):
    """The small case runs serially, the large one in parallel."""
    problem = make_problem(1, inputs=100, outputs=rows)
    gram, cross, _ = problem.solver_inputs
    values, product = torch.zeros_like(cross), torch.zeros_like(cross)
    torch.set_num_threads(threads)
    try:
        sweep_(values, product, cross / 0.3, gram, **CODES)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    plain, plain_product = torch.zeros_like(cross), torch.zeros_like(cross)
    sweep_by_blocks_(plain, plain_product, cross / 0.3, gram, **CODES,
                     closed=torch.zeros(1, rows, dtype=torch.bool))
    assert torch.equal(values, plain)
