"""Compiled loops: serial or parallel, the results and torch's thread count stay the same."""

import pytest
import torch

from mmbitsplit.functional.kernels import numba_loops
from mmbitsplit.functional.kernels.numba_loops import (
    SERIAL_WORK,
    descent_sweep,
    feedback_block,
    quantize_rows,
    round_trip_errors,
)
from mmbitsplit.functional.solvers.error_feedback import feedback_loop_torch

DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def threads():
    """Sets torch's number of threads; puts back one afterwards."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


def quantize_arguments(dtype, rows=6, columns=50):
    x = 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = torch.linspace(0.1, 0.5, 3, dtype=dtype)
    return x, scale, torch.tensor([-8, -3, 0]).to(x), torch.tensor([7, 3, 15]).to(x)


@pytest.mark.parametrize('dtype', DTYPES)
def test_rows_one_element_at_a_time(dtype):
    x, scale, low, high = quantize_arguments(dtype)
    codes = quantize_rows(x, scale, low, high)
    errors = round_trip_errors(x, *(part.unsqueeze(0) for part in (scale, low, high)))
    assert (codes.dtype, errors.dtype) == (dtype, torch.float64)
    for r, row in enumerate(x.tolist()):
        step, smallest, largest = (float(part[r % 3]) for part in (scale, low, high))
        expected = [min(max(round(value / step), smallest), largest) for value in row]
        assert codes[r].tolist() == expected
        assert errors[0, r].item() == pytest.approx(sum(
            (value - step * code) ** 2 for value, code in zip(row, expected)), rel=1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_sweep_of_float32_rows_is_taken_in_float32(dtype):
    """Python's floats are float64: one among the arguments would change the loop's arithmetic."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(1, 70, 200, generator=generator)
    gram = (half @ half.mT).to(dtype)
    target = (50 * torch.randn(1, 3, 70, generator=generator)).to(dtype)
    values, product = torch.zeros_like(target), torch.zeros_like(target)
    moved = torch.zeros(1, 3, dtype=torch.int64)
    signatures = len(numba_loops._serial_sweep.signatures)
    for _ in range(2):
        descent_sweep(values, product, target, gram, 1, -7, 7.0, moved)
    assert len(numba_loops._serial_sweep.signatures) <= signatures + 1
    assert moved.any()
    assert torch.equal(values, values.round())
    torch.testing.assert_close(product, values @ gram, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', DTYPES)
def test_feedback_of_float32_rows_agrees_with_torch(dtype):
    generator = torch.Generator().manual_seed(1)
    block = 3 * torch.randn(2, 9, 40, generator=generator).to(dtype)
    factor = (torch.eye(40) + 0.1 * torch.randn(2, 40, 40, generator=generator)).triu().to(dtype)
    scale = (0.5 + torch.rand(2, 9, generator=generator)).to(dtype)
    left, codes = [block.clone(), block.clone()], [torch.empty_like(block) for _ in range(2)]
    feedback_block(left[0], codes[0], scale, factor, -7, 7)
    feedback_loop_torch(left[1], codes[1], scale, factor, -7, 7)
    assert torch.equal(*codes)
    torch.testing.assert_close(*left)


def results(dtype, columns):
    """What every loop gives for the same inputs."""
    x, scale, low, high = quantize_arguments(dtype, rows=30, columns=columns)
    generator = torch.Generator().manual_seed(2)
    half = torch.randn(1, 60, 100, generator=generator).to(dtype)
    gram = half @ half.mT
    block = 3 * torch.randn(1, columns // 10, 60, generator=generator).to(dtype)
    factor, codes = torch.linalg.cholesky(gram, upper=True), torch.empty_like(block)
    values, product = torch.zeros_like(block), torch.zeros_like(block)
    moved = torch.zeros(block.shape[:2], dtype=torch.int64)
    descent_sweep(values, product, 30 * block, gram, 1.0, -7.0, 7.0, moved)
    feedback_block(block, codes, torch.ones_like(block[..., 0]), factor, -7.0, 7.0)
    return (quantize_rows(x, scale, low, high),
            round_trip_errors(x, *(part.expand(4, 3) for part in (scale, low, high))),
            values, product, moved, codes, block)


@pytest.mark.parametrize('columns', [20, 3000], ids=['little work', 'much work'])
def test_threads_change_no_result(columns, threads):
    assert (30 * 3000 * 4 > SERIAL_WORK) and (30 * 20 * 4 < SERIAL_WORK)
    alone = results(torch.float32, columns)
    threads(2)
    shared = results(torch.float32, columns)
    assert torch.get_num_threads() == 2
    for mine, ours in zip(alone, shared):
        assert torch.equal(mine, ours)


@pytest.mark.parametrize('work', [SERIAL_WORK, SERIAL_WORK + 1])
@pytest.mark.parametrize('count', [1, 3])
def test_torchs_thread_count_is_put_back(count, work, threads):
    """Numba sets it when it starts its threads, which is when it loads any loop, serial too."""
    threads(count)
    called = []

    def loading(name):
        def loop(*arguments):
            called.append((name, arguments))
            torch.set_num_threads(2)
        return loop

    numba_loops.run_loop(loading('serial'), loading('parallel'), work, 'x', 5)
    assert called == [('parallel' if count > 1 and work > SERIAL_WORK else 'serial', ('x', 5))]
    assert torch.get_num_threads() == count
