"""The published algorithm of the benchmark does what the paper says, and what the package does."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbitsplit.functional import (
    layer_statistics,
    round_weight,
    solve_bitsplit,
    split_bit_planes,
    weight_scale,
)

FILE = Path(__file__).resolve().parents[2] / 'benchmarks/published_bitsplit.py'


@pytest.fixture(scope='module')
def published():
    """The module; benchmarks are scripts, not a package."""
    spec = importlib.util.spec_from_file_location('published_bitsplit_under_test', FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def make_layer(seed, inputs=12, outputs=5, rows=None, dtype=np.float64):
    """x (K, N) correlated and not negative, y (K, M) of slightly different inputs, weight."""
    random = np.random.default_rng(seed)
    rows = rows or 3 * inputs + 20
    mix = random.normal(size=(inputs // 3 + 1, inputs))
    clean = np.maximum(random.normal(size=(rows, len(mix))) @ mix
                       + random.normal(size=(rows, inputs)), 0)
    x = clean + 0.1 * random.normal(size=clean.shape)
    weight = random.normal(size=(outputs, inputs))
    return tuple(part.astype(dtype) for part in (x, clean @ weight.T, weight))


def squared_error(x, y, codes, scale):
    """(M,) of Eq. 2, from the outputs themselves."""
    return ((y - x @ (codes * scale[:, None]).T) ** 2).sum(0)


def package_start(weight, bits):
    """Codes and scale that ``solve_bitsplit(init='mse')`` starts from."""
    weight = torch.from_numpy(weight)
    scale = weight_scale(weight, bits, 'mse')
    return round_weight(weight, scale, bits).numpy(), scale.numpy()


@pytest.mark.parametrize('epochs', [1, 2, 100])
@pytest.mark.parametrize(('bits', 'inputs'), [(2, 12), (3, 12), (4, 90), (6, 20), (8, 12)])
def test_the_package_gives_the_same_solution(published, bits, inputs, epochs):
    """From one start; the package visits 90 inputs in more than one block."""
    x, y, weight = make_layer(bits, inputs)
    found = published.solve_published(x, y, weight, bits, epochs=epochs,
                                      start=package_start(weight, bits))
    sums = layer_statistics(torch.from_numpy(x.T[None].copy()), torch.from_numpy(y.T[None].copy()))
    ours = solve_bitsplit(sums.gram, sums.cross, torch.from_numpy(weight[None]), bits,
                          y_sq=sums.y_sq, init='mse', polish=False, tolerance=0,
                          max_sweeps=epochs)
    assert np.array_equal(found.codes, ours.codes[0].numpy())
    np.testing.assert_allclose(found.scale, ours.scale[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(found.objective, ours.objective[0].numpy(), rtol=1e-8,
                               atol=1e-10 * (y ** 2).sum())
    assert found.epochs * (bits - 1) == ours.num_sweeps
    assert (found.codes != package_start(weight, bits)[0]).any()


@pytest.mark.parametrize('bits', range(2, 9))
def test_the_objective_never_rises_over_epochs(published, bits):
    x, y, weight = make_layer(bits, inputs=40, outputs=8)
    codes, scale = published.rounding_start(weight, bits)
    last = squared_error(x, y, codes, scale)
    first, slack = last, 1e-9 * (y ** 2).sum(0)
    most = published.solve_published(x, y, weight, bits).epochs
    assert 1 < most < 100
    for epochs in range(most + 1):
        solution = published.solve_published(x, y, weight, bits, epochs=epochs)
        assert (solution.objective <= last + slack).all()
        assert solution.epochs == epochs
        last = solution.objective
    assert last.sum() < 0.9 * first.sum()


@pytest.mark.parametrize(('bits', 'dtype'), [(2, np.float64), (4, np.float64), (8, np.float64),
                                             (4, np.float32)])
def test_the_objective_returned_is_that_of_codes_and_scale(published, bits, dtype):
    x, y, weight = make_layer(bits, inputs=30, dtype=dtype)
    solution = published.solve_published(x, y, weight, bits)
    assert solution.codes.dtype == np.int8
    assert solution.scale.dtype == solution.objective.dtype == dtype
    assert np.abs(solution.codes).max() <= 2 ** (bits - 1) - 1
    expected = squared_error(x.astype(float), y.astype(float), solution.codes, solution.scale)
    np.testing.assert_allclose(solution.objective, expected, rtol=1e-4,
                               atol=1e-9 if dtype == np.float64 else 1e-6 * (y ** 2).sum())


@pytest.mark.parametrize('bits', [2, 3, 4, 6])
def test_at_rest_no_single_element_and_no_scale_can_do_better(published, bits):
    """Brute force: every element of every plane at -1, 0 and 1, and scales around the found."""
    x, y, weight = make_layer(bits, inputs=9, outputs=3)
    solution = published.solve_published(x, y, weight, bits)
    assert solution.epochs < 100
    planes, scale = solution.planes.astype(int), solution.scale
    best = squared_error(x, y, published.stitch_planes(planes), scale) * (1 - 1e-9)
    assert np.array_equal(published.stitch_planes(planes), solution.codes)
    for m in range(bits - 1):
        for k in range(9):
            for value in (-1, 0, 1):
                other = planes.copy()
                other[m, :, k] = value
                error = squared_error(x, y, published.stitch_planes(other), scale)
                assert (error >= best).all()
    for factor in (0.999, 1.001):
        assert (squared_error(x, y, solution.codes, scale * factor) > best).all()


def test_it_starts_by_rounding_at_the_largest_absolute_weight(published):
    weight = np.array([[-7.0, 3.4, 0.2], [0.7, -0.3, 0.05], [0.0, 0.0, 0.0]])
    codes, scale = published.rounding_start(weight, 4)
    np.testing.assert_allclose(scale, [1.0, 0.1, 1.0])
    assert codes.tolist()[0] == [-7, 3, 0]
    assert np.abs(codes).max(axis=1).tolist() == [7, 7, 0]
    x, y, _ = make_layer(0, inputs=3, outputs=3)
    solution = published.solve_published(x, y, weight, 4, epochs=0)
    assert np.array_equal(solution.codes, codes)
    assert solution.epochs == 0


@pytest.mark.parametrize('bits', range(2, 9))
def test_planes_are_those_of_the_package_and_add_up(published, bits):
    largest = 2 ** (bits - 1) - 1
    codes = np.arange(-largest, largest + 1.0)
    planes = published.split_planes(codes, bits)
    assert np.array_equal(planes, split_bit_planes(torch.from_numpy(codes), bits).numpy())
    assert np.array_equal(published.stitch_planes(planes), codes)


def test_dead_inputs_and_silent_outputs_do_no_harm(published):
    x, y, weight = make_layer(1)
    x[:, 3], y[:, 2] = 0, 0
    weight[4] = 0
    solution = published.solve_published(x, y, weight, 4)
    codes, scale = published.rounding_start(weight, 4)
    assert np.isfinite(solution.scale).all() and (solution.scale > 0).all()
    assert np.array_equal(solution.codes[:, 3], codes[:, 3])
    assert (solution.objective < squared_error(x, y, codes, scale)).all()


def test_progress_is_told_after_every_epoch(published):
    x, y, weight = make_layer(0)
    told = []
    solution = published.solve_published(x, y, weight, 4,
                                         on_epoch=lambda *what: told.append(what))
    assert [epoch for epoch, _ in told] == list(range(1, solution.epochs + 1))
    assert [moved > 0 for _, moved in told] == [True] * (solution.epochs - 1) + [False]
