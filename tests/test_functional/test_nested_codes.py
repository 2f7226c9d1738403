"""Codes that several widths share: brute force on tiny problems, prefixes, what never rises."""

import itertools
from dataclasses import replace

import pytest
import torch

from mmbitsplit.functional import (
    add_ridge,
    code_range,
    layer_statistics,
    narrower_codes,
    quadratic_objective,
    round_nested,
    solve_bitsplit,
    solve_nested,
)
from mmbitsplit.functional.kernels.nested_loops import nested_sweep, range_fits
from mmbitsplit.structures import WeightSolution

LAYOUTS = ('floor', 'planes')


def problem(widths, outputs=5, inputs=12, positions=200, seed=0):
    """Statistics of the same layer on inputs that are rounded more coarsely at fewer bits."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = (mixing @ torch.randn(inputs, positions, generator=generator, dtype=torch.float64))[None]
    weight = torch.randn(1, outputs, inputs, generator=generator, dtype=torch.float64)
    y, sums = weight @ x, []
    for bits in widths:
        step = x.abs().max() / 2 ** bits
        sums.append(add_ridge(layer_statistics((x / step).round() * step, y), weight, 0.03))
    return sums, [weight] * len(widths)


def of_width(solution: WeightSolution, bits: int, widest: int) -> WeightSolution:
    return solution if bits == widest else solution.narrower[bits]


def errors(solution, sums, widths):
    return torch.stack([quadratic_objective(one.gram, one.cross, one.y_sq, of_width(
        solution, bits, widths[-1]).weight) for one, bits in zip(sums, widths)], -1)


@pytest.mark.parametrize('order', ['joint', 'up'])
@pytest.mark.parametrize('nesting', LAYOUTS)
def test_narrower_codes_are_prefixes_with_scales_and_errors_of_their_own(nesting, order):
    widths = (2, 3, 5, 8)
    sums, weights = problem(widths)
    solution = solve_nested(sums, weights, widths, nesting=nesting, order=order)
    low, high = code_range(8, signed=True, narrow_range=nesting == 'planes')
    assert low <= int(solution.codes.min()) and int(solution.codes.max()) <= high
    assert solution.codes.unique().numel() > 20 and set(solution.narrower) == {2, 3, 5}
    for bits, one in solution.narrower.items():
        assert torch.equal(one.codes, narrower_codes(solution.codes, 8, bits, nesting))
        assert (one.offset is None) == (nesting == 'planes')
    found = errors(solution, sums, widths)
    stated = torch.stack([of_width(solution, bits, 8).objective for bits in widths], -1)
    torch.testing.assert_close(stated, found)
    assert (found.diff(dim=-1).sum((0, 1)) < 0).all()  # wider is better


@pytest.mark.parametrize('nesting', LAYOUTS)
def test_the_weighted_objective_never_rises(nesting):
    widths = (3, 4, 6, 8)
    sums, weights = problem(widths, outputs=8, inputs=30)
    history = solve_nested(sums, weights, widths, nesting=nesting).history
    assert len(history) > 4 and history[-1] < history[0]
    assert all(after <= before * (1 + 1e-9) for before, after in zip(history, history[1:]))


@pytest.mark.parametrize('nesting', LAYOUTS)
def test_solving_beats_rounding_and_comes_near_to_each_width_by_itself(nesting):
    widths = (3, 4, 8)
    sums, weights = problem(widths, outputs=16, inputs=40, positions=600)
    solved, rounded = (errors(one, sums, widths).sum((0, 1)) for one in (
        solve_nested(sums, weights, widths, nesting=nesting),
        round_nested(weights, widths, nesting)))
    assert (solved[:2] < rounded[:2]).all()
    if nesting == 'floor':
        alone = torch.stack([errors(solve_nested([one], weights[:1], [bits]), [one], [bits]).sum()
                             for one, bits in zip(sums, widths)])
        assert (solved[:2] < 1.35 * alone[:2]).all()


def test_one_width_is_as_good_as_bitsplit():
    sums, weights = problem((4,), outputs=32, inputs=40, positions=600)
    for nesting in LAYOUTS:
        ours = errors(solve_nested(sums, weights, [4], nesting=nesting), sums, [4]).sum()
        plain = solve_bitsplit(sums[0].gram, sums[0].cross, weights[0], 4, y_sq=sums[0].y_sq)
        assert ours < 1.02 * plain.objective.sum()


@pytest.mark.parametrize('nesting', LAYOUTS)
def test_a_settled_sweep_finds_the_best_codes_of_an_element(nesting):
    """From every start, one element at a time: as good as trying all codes of the widest."""
    widths, planes = (2, 4), nesting == 'planes'
    sums, _ = problem(widths, outputs=1, inputs=3, positions=50)
    low, high = code_range(4, signed=True, narrow_range=planes)
    scale = torch.tensor([[[0.8, 0.21]]], dtype=torch.float64)
    importance = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    gram = torch.stack([one.gram for one in sums], 2)
    cross = torch.stack([one.cross for one in sums], 2)

    def real(codes):
        return torch.stack([(narrower_codes(codes, 4, bits, nesting) + (0.0 if planes else 0.5))
                            * scale[..., level, None] for level, bits in enumerate(widths)], 2)

    def total(codes):
        return sum(importance[0, 0, level] * quadratic_objective(
            sums[level].gram, sums[level].cross, sums[level].y_sq, real(codes)[:, :, level])
            for level in range(2)).item()

    starts = torch.randint(low, high + 1, (20, 1, 1, 3), dtype=torch.int32,
                           generator=torch.Generator().manual_seed(1))
    for codes in starts:
        wanted = codes.clone()
        for n in range(3):
            tried = {code: total(torch.cat([wanted[..., :n], torch.tensor(
                [[[code]]], dtype=torch.int32), wanted[..., n + 1:]], -1))
                for code in range(low, high + 1)}
            wanted[..., n] = min(tried, key=tried.get)
        product = torch.einsum('gmkn,gnkj->gmkj', real(codes), gram)
        nested_sweep(codes, (cross - product).contiguous(), gram.contiguous(), scale, importance,
                     [2, 0], planes, (low, high), torch.zeros(1, 1, dtype=torch.int64))
        assert total(codes) == pytest.approx(total(wanted), rel=1e-9)


def test_a_narrow_width_is_heard_where_layers_before_have_spoilt_its_inputs():
    """Ten times the error of its codes, of which no codes can help anything, costs it little."""
    widths = (3, 8)
    sums, weights = problem(widths, outputs=32, inputs=30)
    clean = errors(solve_nested(sums, weights, widths), sums, widths)[..., 0].sum(-1)
    more = 10 * clean.sum() / 32
    spoilt = [replace(sums[0], y_sq=sums[0].y_sq + more), sums[1]]
    found = errors(solve_nested(spoilt, weights, widths), sums, widths)[..., 0].sum(-1)
    assert found.sum() < 1.3 * clean.sum()


@pytest.mark.parametrize('nesting', LAYOUTS)
def test_ranges_are_judged_as_by_rounding_and_least_squares(nesting):
    planes, generator = nesting == 'planes', torch.Generator().manual_seed(2)
    target = torch.randn(2, 3, 2, 7, generator=generator, dtype=torch.float64)
    target[1, 2, 1] = 0  # nothing to follow
    weight = torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    tops = target[:, :, 1].abs().amax(-1).clamp(min=1e-12) * torch.tensor([0.5, 1.0]).view(2, 1, 1)
    low, high = code_range(5, signed=True, narrow_range=planes)
    offset, reach = (0.0, high) if planes else (0.5, high + 1)
    found, scales = range_fits(target, weight, tops, reach, offset, [2, 0], planes, (low, high),
                               1e-12)
    codes = (target[:, :, 1] * reach / tops.unsqueeze(-1) - offset).round().clamp(low, high).int()
    for level, bits in enumerate((3, 5)):
        levels = narrower_codes(codes, 5, bits, nesting) + offset
        of, wanted = weight[:, None, level], target[:, :, level]
        scale = (of * levels * wanted).sum(-1) / (of * levels * levels).sum(-1)
        scale = torch.where(scale > 0, scale, 1e-12)
        error = (of * (wanted - scale.unsqueeze(-1) * levels).square()).sum(-1)
        torch.testing.assert_close(scales[..., level], scale)
        torch.testing.assert_close(found[..., level], error)


def test_no_code_of_a_tiny_row_is_better_than_a_little():
    """All codes of three weights at two widths, scales refitted: the descent is near the best."""
    widths = (2, 3)
    sums, weights = problem(widths, outputs=6, inputs=3, positions=60)
    codes = torch.tensor(list(itertools.product(range(-4, 4), repeat=3)), dtype=torch.int32)

    def fitted(level, one, row):
        levels = narrower_codes(codes, 3, widths[level], 'floor').double() + 0.5
        energy = ((levels @ one.gram[0]) * levels).sum(-1)
        correlation = (levels * one.cross[0, row]).sum(-1).clamp(min=0)
        return one.y_sq[0, row] - correlation.square() / energy

    solution = solve_nested(sums, weights, widths)
    found = errors(solution, sums, widths)[0]
    ratios = []
    for row in range(6):
        both = torch.stack([fitted(level, one, row) for level, one in enumerate(sums)])
        least = both.amin(1)
        ratios.append(((found[row] / least).sum() / (both / least[:, None]).sum(0).min()).item())
    assert sum(ratios) / len(ratios) < 1.25


def test_an_output_by_itself_is_solved_as_among_others():
    widths = (3, 6)
    sums, weights = problem(widths, outputs=7, inputs=20)
    whole = solve_nested(sums, weights, widths)
    part = solve_nested([type(one)(gram=one.gram, cross=one.cross[:, 2:3], y_sq=one.y_sq[:, 2:3],
                                   x_sum=one.x_sum, y_sum=one.y_sum[:, 2:3], count=one.count)
                         for one in sums], [weight[:, 2:3] for weight in weights], widths)
    assert torch.equal(part.codes, whole.codes[:, 2:3])


@pytest.mark.parametrize(('widths', 'message'), [
    ([], 'at least one'), ([4, 3], 'rising'), ([4, 4], 'once'), ([1, 4], 'from 2 to 8|2 to 8')])
def test_widths_that_are_not_allowed_are_named(widths, message):
    sums, weights = problem((4, 5))
    with pytest.raises(ValueError, match=message):
        solve_nested(sums, weights, widths)


def test_rows_of_zeros_are_solved():
    sums, weights = problem((3, 8))
    for one in sums:
        one.cross[:, 1] = 0
        one.y_sq[:, 1] = 0
    weights = [weight.clone() for weight in weights]
    weights[0][:, 1] = weights[1][:, 1] = 0
    solution = solve_nested(sums, weights, [3, 8])
    assert solution.weight[:, 1].abs().max() < 1e-6 and solution.scale.min() > 0
