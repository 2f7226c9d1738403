"""The solver against two oracles: all codes of a tiny layer, and the paper's equations."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmbitsplit.functional import code_range, round_weight, solve_bitsplit, weight_scale

# Measured share of random channels where the default finds the optimum: 0.80 (2 bits, 3
# inputs), 0.70 (2 bits, 4), 0.67 (3 bits, 3), 0.61 (3 bits, 4).
MOST = 0.5


def least_objective(sums, bits):
    """(G, M): over all codes, each with its best scale (Eq. 4 put into Eq. 2)."""
    low, high = code_range(bits, signed=True, narrow_range=True)
    codes = torch.tensor(list(itertools.product(range(low, high + 1), repeat=sums.gram.shape[-1])),
                         dtype=torch.float64)  # (P, N)
    correlation = torch.einsum('pn,gmn->gmp', codes, sums.cross)
    energy = torch.einsum('pn,gnk,pk->gp', codes, sums.gram, codes).unsqueeze(1)
    gain = torch.where(correlation > 0, correlation.square() / energy.clamp(min=1e-300), 0.0)
    return sums.y_sq - gain.amax(-1)


@pytest.mark.parametrize('options', [{}, {'init': 'mse'}, {'init': 'mse', 'polish': False}],
                         ids=['default', 'mse', 'paper'])
@pytest.mark.parametrize(('bits', 'inputs'), [(2, 3), (2, 4), (3, 3), (3, 4)])
def test_no_solution_is_better_than_the_best_of_all_codes(make_problem, bits, inputs, options):
    problem = make_problem(10 * bits + inputs, groups=50, inputs=inputs)
    solution = solve_bitsplit(*problem.solver_inputs, bits, y_sq=problem.sums.y_sq, **options)
    excess = (problem.objective_of(solution) - least_objective(problem.sums, bits)) \
        / problem.sums.y_sq
    assert excess.min() > -1e-9
    if not options:
        assert (excess < 1e-9).double().mean() > MOST
        assert excess.mean() < 0.04


def paper_scale(codes, gram, cross):
    """Eq. 4."""
    return float(codes @ cross) / float(codes @ gram @ codes)


def paper_split(codes, bits):
    """(b, N), row m for plane m = 1 .. b-1; row 0 stays unused, so that m counts as in print."""
    planes = np.zeros((bits, len(codes)), dtype=int)
    for k, code in enumerate(codes):
        for m in range(1, bits):
            planes[m, k] = int(math.copysign(1, code)) * (abs(int(code)) // 2 ** (m - 1) % 2)
    return planes


def paper_stitch(planes):
    """Eq. 9."""
    return sum(2 ** (m - 1) * planes[m] for m in range(1, len(planes)))


def paper_pass(planes, scale, gram, cross):
    """One pass over each plane, element by element, in place.

    Eq. 6 to 8 with the corrections of the design notes: the sum over the other planes weighs
    plane i with 2^(i-1), a_m = a 2^(m-1), the linear term is -s, and an element is -sign(r_k)
    where |r_k| > A_kk, else 0.
    """
    bits, size = planes.shape
    for m in range(1, bits):
        plane_scale = scale * 2 ** (m - 1)
        others = sum(2 ** (i - 1) * planes[i] for i in range(1, bits) if i != m) + np.zeros(size)
        for k in range(size):
            s_k = 2 * (cross[k] - scale * (gram[k] @ others)) / plane_scale
            r_k = -s_k + 2 * sum(gram[k, i] * planes[m, i] for i in range(size) if i != k)
            planes[m, k] = int(-np.sign(r_k)) if abs(r_k) > gram[k, k] else 0


@pytest.mark.parametrize('rounds', [1, 3])
@pytest.mark.parametrize(('bits', 'inputs'), [(2, 9), (3, 9), (4, 80), (6, 9), (8, 30)])
def test_bit_optimization_is_what_the_paper_says(make_problem, bits, inputs, rounds):
    """80 inputs are more than the package visits in one block."""
    problem = make_problem(bits, outputs=6, inputs=inputs)
    solution = solve_bitsplit(*problem.solver_inputs, bits, init='mse', polish=False,
                              max_sweeps=rounds, tolerance=0)
    start = round_weight(problem.weight, weight_scale(problem.weight, bits), bits)[0].numpy()
    gram = problem.sums.gram[0].numpy()
    for channel in range(6):
        cross = problem.sums.cross[0, channel].numpy()
        planes = paper_split(start[channel], bits)
        assert paper_stitch(planes).tolist() == start[channel].tolist()
        for _ in range(rounds):
            paper_pass(planes, paper_scale(paper_stitch(planes), gram, cross), gram, cross)
        codes = paper_stitch(planes)
        assert solution.codes[0, channel].tolist() == codes.tolist()
        assert solution.scale[0, channel].item() == pytest.approx(paper_scale(codes, gram, cross))
    assert (solution.codes[0].numpy() != start).any()  # the passes did something
