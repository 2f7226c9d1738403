"""Compiled and plain inner loops agree; a blocked sweep is an element-by-element one."""

import pytest
import torch

from mmbitsplit.functional.descent import block_loop, block_loop_torch, sweep_
from mmbitsplit.functional.error_feedback import (
    FeedbackFactor,
    feedback_loop,
    feedback_loop_torch,
)

PLANE = {'step': 4.0, 'low': -1.0, 'high': 1.0}
CODES = {'step': 1.0, 'low': -7.0, 'high': 7.0}


def random_block(seed, groups=2, rows=3, columns=20):
    """values and residual (G, M, B), gram (G, B, B) with a dead column."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(groups, columns, 2 * columns, generator=generator, dtype=torch.float64)
    half[:, 5] = 0
    values = torch.randint(-1, 2, (groups, rows, columns), generator=generator).double()
    residual = 40 * torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return values, residual, half @ half.mT


@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
@pytest.mark.parametrize('seed', range(5))
def test_compiled_and_plain_descent_agree(seed, lattice):
    values, residual, gram = random_block(seed)
    compiled, plain = values.clone(), values.clone()
    block_loop(compiled, residual.clone(), gram, **lattice)
    block_loop_torch(plain, residual.clone(), gram, **lattice)
    assert torch.equal(compiled, plain)
    assert not torch.equal(compiled, values)
    assert torch.equal(compiled[..., 5], values[..., 5])  # nothing moves where nothing is known


@pytest.mark.parametrize('seed', range(5))
def test_compiled_and_plain_error_feedback_agree(seed):
    _, block, gram = random_block(seed)
    block = block / 10
    gram = gram + torch.eye(20, dtype=torch.float64)
    factor = torch.linalg.cholesky(gram, upper=True)
    scale = torch.full((2, 3), 0.8, dtype=torch.float64)
    results = []
    for loop in (feedback_loop, feedback_loop_torch):
        errors, codes = torch.empty_like(block), torch.empty_like(block)
        loop(block.clone(), errors, codes, scale, factor, -7.0, 7.0)
        results.append((errors, codes))
    (errors, codes), (plain_errors, plain_codes) = results
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(errors, plain_errors)
    assert codes.abs().max() == 7
    assert torch.equal(codes, codes.round())


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
    assert moved == torch.count_nonzero(values)


@pytest.mark.parametrize('lattice', [PLANE, CODES], ids=['plane', 'codes'])
def test_a_sweep_moves_nothing_from_a_place_of_rest(make_problem, lattice):
    problem = make_problem(0, inputs=100)
    gram, cross, _ = problem.solver_inputs
    values, product = torch.zeros_like(cross), torch.zeros_like(cross)
    target = cross / 0.3
    for _ in range(100):
        if not sweep_(values, product, target, gram, **lattice):
            break
    at_rest = values.clone()
    assert sweep_(values, product, target, gram, **lattice) == 0
    assert torch.equal(values, at_rest)
    assert at_rest.any()
