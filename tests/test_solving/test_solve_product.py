"""Scales of products: the best pair of those tried, whatever the number of processes."""

import itertools
from dataclasses import replace

import pytest
import torch
from thread_team import together

from mmbitsplit.models.layers.product import Product
from mmbitsplit.passes.product_capture import MOST_ROWS, capture_product
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import CLIPPING_GAIN
from mmbitsplit.solving.solve_product import _candidates, _Trial, solve_product
from mmbitsplit.structures import Log2Params, ProductInput, ProductPlan

PLAN = ProductPlan('p', ProductInput(4), ProductInput(4))


def calls(count=4, plan=PLAN, shape=(2, 3, 5, 7), seed=0, softmax=False):
    """Captures of random inputs, with what they were taken of."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in range(count):
        a = torch.randn(shape, generator=generator) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
        b = torch.randn(*shape[:-2], shape[-1], 6, generator=generator)
        a = a.softmax(-1) if softmax else a
        found.append((a, b, capture_product(a, b, plan, 1 / count, (0, 'p', 0, batch))))
    return found


def captures(*args, **kwargs):
    return [capture for _, _, capture in calls(*args, **kwargs)]


def error_of(pairs, solution):
    """Squared error over whole inputs."""
    product = Product()
    product.install(solution)
    return sum(float((product(a, b) - a @ b).square().sum()) for a, b in pairs)


def test_small_inputs_are_taken_whole():
    for a, b, capture in calls():
        wanted = (a @ b).flatten(0, 1)
        assert torch.equal(capture.a @ capture.b, wanted)
        assert capture.heads.tolist() == [0, 1, 2, 0, 1, 2]


def test_large_inputs_are_sampled_the_same_each_time():
    a, b = torch.randn(2, 4, 500, 64), torch.randn(4, 64, 300)
    one, other = (capture_product(a, b, PLAN, 1 / 64, (0, 'p', 0, 3)) for _ in range(2))
    assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
    assert one.a.shape[1] <= MOST_ROWS and one.a.shape[0] == one.b.shape[0]
    assert one.a.numel() + one.b.numel() <= (1 << 20) / 64
    rows, columns = a.flatten(0, 2), b.mT.flatten(0, 1)
    assert (rows == one.a[0, 1]).all(1).any() and (columns == one.b[0, :, 1]).all(1).any()
    assert float(one.high['a']) == float(a.max()) and float(one.low['b']) == float(b.min())


def test_tokens_that_fill_sentences_up_are_not_looked_at():
    mask = torch.tensor([[True] * 5 + [False] * 4, [True] * 7 + [False] * 2])
    q, k, v = (torch.randn(2, 3, 9, 4) for _ in range(3))
    for x in (q, k, v):
        x[0, :, 5:], x[1, :, 7:] = 1e6, 1e6
    weights = torch.zeros(2, 3, 9, 9)
    weights[..., :5] = 0.2
    for a, b in ((q, k.mT), (weights, v)):
        capture = capture_product(a, b, PLAN, 1, (0, 'p', 0, 0), mask)
        assert max(float(high) for high in capture.high.values()) < 100
        assert float((capture.a @ capture.b).abs().max()) < 100
        whole = capture_product(a, b, PLAN, 1, (0, 'p', 0, 0))
        assert float(whole.high['b']) == 1e6
        same = capture_product(a, b, PLAN, 1, (0, 'p', 0, 0), torch.ones_like(mask))
        assert torch.equal(same.a, whole.a) and torch.equal(same.values['b'], whole.values['b'])


@pytest.mark.parametrize('softmax', [False, True])
def test_no_pair_of_those_tried_is_better(softmax):
    plan = replace(PLAN, a=ProductInput(4, softmax='uniform' if softmax else None))
    found = captures(softmax=softmax)
    candidates = _candidates(plan, found, Team())
    trial = _Trial(candidates, found, Team())
    best = trial.search()
    pairs = list(itertools.product(range(len(trial.a)), range(len(trial.b))))
    weighed = {pair: error / CLIPPING_GAIN ** sum(one.clips for one in trial.pair(pair))
               for pair, error in zip(pairs, trial._errors(pairs))}
    assert weighed[best] == min(weighed.values())
    assert ('unit' in [one.search for one in trial.a]) == softmax


def test_what_is_found_is_better_than_ranges_on_the_whole_inputs():
    found = calls(6)
    solved = solve_product(PLAN, [capture for _, _, capture in found])
    pairs = [(a, b) for a, b, _ in found]
    plain = replace(PLAN, a=ProductInput(4, scale_search='minmax'),
                    b=ProductInput(4, scale_search='minmax'))
    minmax = solve_product(plain, [capture for _, _, capture in found])
    assert error_of(pairs, solved.solution) < error_of(pairs, minmax.solution)
    spread = sum(float((a @ b - (a @ b).mean(-2, keepdim=True)).square().sum()) for a, b in pairs)
    assert solved.error == pytest.approx(error_of(pairs, solved.solution) / spread, rel=1e-4)
    assert solved.error_minmax == pytest.approx(minmax.error)


def test_heads_of_different_size_gain_by_scales_of_their_own():
    by_head = replace(PLAN, a=ProductInput(4, granularity='head'))
    solved = solve_product(by_head, captures(plan=by_head))
    assert solved.solution.a.scale.shape == (3,) and solved.solution.b.scale.shape == (1,)
    assert solved.error < solve_product(PLAN, captures()).error
    scale = solved.solution.a.scale
    assert scale[0] < scale[1] < scale[2]


def test_powers_of_two_where_they_are_asked_for():
    plan = replace(PLAN, a=ProductInput(4, softmax='log2'))
    solved = solve_product(plan, captures(plan=plan, softmax=True))
    assert solved.solution.a == Log2Params(4) and solved.searches[0] == 'log2'


@pytest.mark.parametrize('size', [2, 3])
def test_several_processes_find_what_one_finds(size):
    found = captures(7)
    alone = solve_product(PLAN, found)
    for solved in together(size, lambda team: solve_product(
            PLAN, [found[number] for number in team.batches(7)], team)):
        assert solved.error == alone.error and solved.calls == alone.calls == 7
        for one, other in ((solved.solution.a, alone.solution.a),
                           (solved.solution.b, alone.solution.b)):
            assert torch.equal(one.scale, other.scale)
            assert torch.equal(one.zero_point, other.zero_point)


def test_codes_that_cannot_hold_an_input_are_refused_by_name():
    plan = replace(PLAN, b=ProductInput(4, symmetry='unsigned'))
    with pytest.raises(ValueError, match="Input b of product 'p': symmetry='unsigned'"):
        solve_product(plan, captures())
