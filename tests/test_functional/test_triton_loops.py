"""Triton's inner loops give the codes of the torch and the Numba ones.

Compiled where there is a CUDA device; elsewhere in Triton's interpreter, in a process of its
own, because the interpreter is chosen when Triton is imported.
"""

import os
import subprocess
import sys

import pytest
import torch

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.solvers import coordinate_descent as descent
from mmbitsplit.functional.solvers import error_feedback

pytest.importorskip('triton')
from mmbitsplit.functional.kernels import triton_loops  # noqa: E402

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED or not torch.cuda.is_available() else 'cuda'
pytestmark = pytest.mark.filterwarnings('ignore::RuntimeWarning')  # numpy's division by zero
where_it_runs = pytest.mark.skipif(
    DEVICE == 'cpu' and not INTERPRETED, reason='done by test_in_the_interpreter')

DTYPES = [torch.float32, torch.float64]
RANGES = {bits: code_range(bits, signed=True, narrow_range=True) for bits in range(2, 9)}
# (G, M, B): every number of bits, one column, a full block, two tiles of rows, depthwise
FEEDBACK = [((3, 5, 7), *RANGES[bits]) for bits in RANGES] + [
    ((3, 5, 1), *RANGES[3]), ((3, 5, 64), *RANGES[2]), ((3, 5, 64), *RANGES[4]),
    ((2, 37, 19), *RANGES[4]), ((9, 1, 9), *RANGES[8])]
PLANES = [(size, (4.0, -1.0, 1.0)) for size in ((3, 5, 1), (3, 5, 64), (2, 37, 19), (9, 1, 9))]
DESCENT = PLANES + [(size, (1.0, low, high)) for size, low, high in FEEDBACK]


def descent_problem(size, lattice, seed, whole):
    """values and residual (G, M, B), gram (G, B, B) with a dead column.

    Whole numbers are exact in float32 too, and many quotients lie exactly between two codes.
    """
    groups, rows, columns = size
    step, low, high = lattice
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(groups, columns, 2 * columns + 1, generator=generator).double()
    spread = step * high * columns * torch.randn(size, generator=generator).double()
    half, spread = (half.round(), spread.round()) if whole else (half, spread)
    if columns > 5:
        half[:, 5] = 0
    values = torch.randint(int(low), int(high) + 1, size, generator=generator).double()
    return values, spread, half @ half.mT


def feedback_problem(size, high, seed, whole):
    """block (G, M, B), scale (G, M), factor (G, B, B) upper triangular."""
    groups, rows, columns = size
    generator = torch.Generator().manual_seed(seed)
    block = 0.5 * high * torch.randn(size, generator=generator).double()
    scale = 0.5 + torch.rand(groups, rows, generator=generator).double()
    factor = 0.1 * torch.randn(groups, columns, columns, generator=generator).double()
    pivots = 0.5 + torch.rand(groups, columns, generator=generator).double()
    if whole:  # eighths, so that few bits are enough whatever is clamped
        block, scale = (8 * block).round() / 8, 2.0 ** (scale > 1)
        factor, pivots = (5 * factor).round(), 2.0 ** -(pivots > 1).double()
    return block, scale, factor.triu(1) + torch.diag_embed(pivots)


def numba_descent(values, residual, gram, step, low, high):
    """A sweep over one block is the loop alone; on the CPU it is Numba's."""
    descent.sweep_(values, torch.zeros_like(values), residual, gram, step=step, low=low, high=high)


def run_descent(loop, problem, lattice, dtype, device='cpu'):
    values, residual, gram = (one.to(device, dtype, copy=True) for one in problem)
    loop(values, residual, gram, *map(float, lattice))
    return values.cpu(), residual.cpu()


def run_feedback(loop, problem, low, high, dtype, device='cpu'):
    block, scale, factor = (one.to(device, dtype, copy=True) for one in problem)
    codes = torch.full_like(block, torch.nan)
    loop(block, codes, scale, factor, float(low), float(high))
    return codes.cpu(), block.cpu()


@pytest.mark.skipif(DEVICE == 'cuda' or INTERPRETED, reason='the others run in this process')
def test_in_the_interpreter():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__]
    done = subprocess.run(command, env={**os.environ, 'TRITON_INTERPRET': '1'}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@where_it_runs
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size, lattice', DESCENT)
def test_descent_agrees_where_everything_is_exact(size, lattice, dtype):
    problem = descent_problem(size, lattice, seed=sum(size), whole=True)
    values, residual = run_descent(triton_loops.descent_block, problem, lattice, dtype, DEVICE)
    plain, plain_residual = run_descent(descent.block_loop_torch, problem, lattice, dtype)
    numba, _ = run_descent(numba_descent, problem, lattice, dtype)
    assert torch.equal(values, plain)
    assert torch.equal(values, numba)
    assert torch.equal(residual, plain_residual)
    assert not torch.equal(values, problem[0].to(dtype))
    if size[2] > 5:  # nothing moves where nothing is known
        assert torch.equal(values[..., 5], problem[0][..., 5].to(dtype))


@where_it_runs
@pytest.mark.parametrize('size, lattice', DESCENT)
def test_descent_agrees_on_any_numbers(size, lattice):
    problem = descent_problem(size, lattice, seed=sum(size), whole=False)
    values, residual = run_descent(triton_loops.descent_block, problem, lattice, torch.float64,
                                   DEVICE)
    plain, plain_residual = run_descent(descent.block_loop_torch, problem, lattice, torch.float64)
    numba, _ = run_descent(numba_descent, problem, lattice, torch.float64)
    assert torch.equal(values, plain)
    assert torch.equal(values, numba)
    torch.testing.assert_close(residual, plain_residual)


@where_it_runs
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size, low, high', FEEDBACK)
def test_feedback_agrees_where_everything_is_exact(size, low, high, dtype):
    problem = feedback_problem(size, high, seed=sum(size), whole=True)
    ours = run_feedback(triton_loops.feedback_block, problem, low, high, dtype, DEVICE)
    plain = run_feedback(error_feedback.feedback_loop_torch, problem, low, high, dtype)
    numba = run_feedback(error_feedback.feedback_loop, problem, low, high, dtype)
    for one, other, third in zip(ours, plain, numba):  # codes, what was left
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@where_it_runs
@pytest.mark.parametrize('size, low, high', FEEDBACK)
def test_feedback_agrees_on_any_numbers(size, low, high):
    problem = feedback_problem(size, high, seed=sum(size), whole=False)
    ours = run_feedback(triton_loops.feedback_block, problem, low, high, torch.float64, DEVICE)
    plain = run_feedback(error_feedback.feedback_loop_torch, problem, low, high, torch.float64)
    numba = run_feedback(error_feedback.feedback_loop, problem, low, high, torch.float64)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[0], numba[0])
    torch.testing.assert_close(ours[1], plain[1])


@where_it_runs
@pytest.mark.parametrize('dtype', DTYPES)
def test_halves_go_to_the_even_code(dtype):
    halves = torch.arange(-300.0, 300.0).view(1, 1, -1)[..., ::9].contiguous() + 0.5
    columns = halves.shape[-1]
    problem = torch.zeros_like(halves), halves, torch.eye(columns).unsqueeze(0)
    values, _ = run_descent(triton_loops.descent_block, problem, (1.0, -127.0, 127.0), dtype,
                            DEVICE)
    assert torch.equal(values, halves.to(dtype).round().clamp(-127, 127))


@where_it_runs
def test_a_number_that_is_none_is_not_hidden():
    problem = torch.zeros(1, 1, 4), torch.full((1, 1, 4), torch.nan), torch.eye(4).unsqueeze(0)
    values, _ = run_descent(triton_loops.descent_block, problem, (1.0, -7.0, 7.0), torch.float64,
                            DEVICE)
    assert values.isnan().all()


@where_it_runs
def test_a_whole_layer_with_a_short_last_block(make_problem, monkeypatch):
    gram, cross, weight = make_problem(0, groups=2, inputs=130).solver_inputs
    scale = torch.full(weight.shape[:2], 0.2, dtype=weight.dtype)

    closed = torch.zeros(scale.shape, dtype=torch.bool)
    closed[1, 2] = True

    def solve(sweep, gram, cross, scale, closed):
        fed = error_feedback.FeedbackFactor(gram, cross).round(scale, 4)
        codes = fed.new_zeros(fed.shape)
        moved = sweep(codes, codes.clone(), cross / scale.unsqueeze(2), gram, step=1.0, low=-7.0,
                      high=7.0, closed=closed)
        return fed.cpu(), codes.cpu(), moved.cpu()

    layer = gram, cross, scale, closed
    numba = solve(descent.sweep_, *layer)
    monkeypatch.setattr(descent, 'block_loop', triton_loops.descent_block)
    monkeypatch.setattr(error_feedback, 'feedback_loop', triton_loops.feedback_block)
    ours = solve(descent.sweep_by_blocks_, *(one.to(DEVICE) for one in layer))
    for one, other in zip(ours, numba):
        assert torch.equal(one, other)
        assert one.unique().numel() > 5
