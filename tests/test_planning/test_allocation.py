"""The integer program against brute force, its Lagrangian bound and the pattern of the paper."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mmbitsplit.planning.allocation import allocate, check_budgets, front, possible
from mmbitsplit.structures import Widths, WidthTable

CHOICES = [Widths(weight, activation) for weight in (2, 4, 8) for activation in (4, 8)]


def tables(layers, numbers):
    return WidthTable({name: {widths: numbers(name, widths) for widths in row}
                       for name, row in layers.items()})


@some.composite
def problems(draw):
    """Up to four layers with up to four choices, two costs, limits that may be too low."""
    layers = {f'layer{number}': draw(some.lists(
        some.sampled_from(CHOICES), min_size=1, max_size=4, unique=True))
        for number in range(draw(some.integers(1, 4)))}
    value = some.integers(0, 20) | some.floats(0, 20)
    losses, first, second = (tables(layers, lambda *_: draw(value)) for _ in range(3))
    first.layers['fixed'] = {Widths(8): draw(value)}
    limits = {key: draw(some.floats(0, 90)) for key in draw(
        some.sets(some.sampled_from(['first', 'second'])))}
    together = draw(some.lists(some.frozensets(some.sampled_from(
        [*layers, 'fixed', 'other']), max_size=3), max_size=2))
    return losses, {'first': first, 'second': second}, limits, together


def allowed(losses, costs, limits, together):
    """All plans within the limits."""
    for row in itertools.product(*losses.layers.values()):
        plan = dict(zip(losses.layers, row))
        if all(len({plan[name].activation for name in group & plan.keys()}) <= 1
               for group in together) and all(costs[key].sum(plan) <= limit
                                              for key, limit in limits.items()):
            yield plan


@settings(deadline=None, max_examples=120)
@given(problems())
def test_small_programs_are_solved_as_by_trying_all_plans(problem):
    losses, costs, limits, together = problem
    best = min(map(losses.sum, allowed(*problem)), default=None)
    if best is None:
        with pytest.raises(ValueError, match='cannot be kept|one width'):
            allocate(losses, costs, limits, together, gap=0)
        return
    found = allocate(losses, costs, limits, together, gap=0)
    assert found.loss == losses.sum(found.widths) == pytest.approx(best, abs=1e-6)
    assert found.widths in allowed(losses, costs, {
        key: limit + 1e-6 for key, limit in limits.items()}, together)
    assert found.costs == {key: table.sum(found.widths) for key, table in costs.items()}
    assert (found.status, found.gap) == ('optimal', 0)
    ends = [costs['second'].sum(plan) for plan in allowed(losses, costs, {}, together)]
    assert possible(losses, costs['second'], together) == pytest.approx((min(ends), max(ends)))


def random_tables(num_layers, seed):
    rng = np.random.default_rng(seed)
    layers = dict.fromkeys(map(str, range(num_layers)), CHOICES)
    size, loss = (dict(zip(layers, rng.lognormal(0, sigma, num_layers))) for sigma in (1.5, 2))
    total = sum(size.values())
    return (tables(layers, lambda name, widths: float(loss[name] * rng.lognormal(0, 0.1) * (
        4.0 ** -widths.weight + 4.0 ** -widths.activation))),
            {'weight_bits': tables(layers, lambda name, widths: size[name] * widths.weight / total),
             'bitops': tables(layers, lambda name, widths: size[name] * math.prod(widths) / 64)})


@pytest.mark.parametrize('seed', range(3))
def test_the_lagrangian_bound_is_below_and_near(seed):
    losses, costs = random_tables(60, seed)
    limits = {'weight_bits': 3.5}
    found = allocate(losses, costs, limits)
    # max over l of sum_layers min_w (loss + l cost) - l limit, by trying many l.
    row = [np.array([[losses.layers[name][widths], costs['weight_bits'].layers[name][widths]]
                     for widths in CHOICES]) for name in losses.layers]
    bounds = [sum((values @ (1, price)).min() for values in row) - price * 3.5
              for price in np.geomspace(1e-4, 1e3, 2000)]
    jump = max(np.ptp(values[:, 0]) for values in row)
    assert max(bounds) - 1e-9 <= found.loss <= max(bounds) + jump
    assert found.loss <= max(bounds) * 1.05
    assert 0 <= found.gap <= 1e-3 and found.costs['weight_bits'] <= 3.5


def test_a_front_falls_as_budgets_grow_and_each_keeps_all_its_limits():
    losses, costs = random_tables(40, 5)
    middle = sum(possible(losses, costs['bitops'])) / 3
    budgets = [{'weight_bits': bits, 'bitops': middle} for bits in (2.5, 3, 4, 6, 8)]
    found = front(losses, costs, budgets)
    assert [one.loss for one in found] == sorted((one.loss for one in found), reverse=True)
    for one, limits in zip(found, budgets):
        assert all(one.costs[key] <= limit * (1 + 1e-8) for key, limit in limits.items())
    assert found[0].loss > 1.5 * found[-1].loss


def resnet50():
    """Weights of each convolution of torchvision's ResNet-50, in order."""
    sizes = {'conv1': 64 * 3 * 49}
    channels = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3)), 1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            sizes[f'{name}.conv1'] = channels * width
            sizes[f'{name}.conv2'] = width * width * 9
            sizes[f'{name}.conv3'] = width * 4 * width
            if block == 0:
                sizes[f'{name}.downsample.0'] = channels * 4 * width
            channels = 4 * width
    return sizes


def test_large_late_layers_give_up_bits_first_as_in_the_paper():
    # METHODS of the paper's repository: at 0.24 of float size layer4.0.conv2 goes first, then
    # layer4.1.conv2 and layer4.2.conv2.
    sizes, rng = resnet50(), np.random.default_rng(0)
    total = sum(sizes.values())
    assert total == 23_454_912
    layers = dict.fromkeys(sizes, [Widths(4, 4), Widths(8, 8)])
    # Each layer's rounding adds noise of the same order, less the later it comes.
    noise = {name: (1 - 0.5 * number / len(sizes)) * rng.lognormal(0, 0.2)
             for number, name in enumerate(sizes)}
    losses = tables(layers, lambda name, widths: noise[name] * 4.0 ** (4 - widths.weight))
    costs = {'weight_bits': tables(layers, lambda name, widths:
                                   sizes[name] * widths.weight / total)}
    plans = [one.widths for one in front(losses, costs, [
        {'weight_bits': bits} for bits in (7.6, 7.2, 6.8, 5)])]
    narrow = [{name for name, widths in plan.items() if widths.weight == 4} for plan in plans]
    threes = {f'layer4.{block}.conv2' for block in range(3)}
    assert [len(one & threes) for one in narrow] == [1, 2, 3, 3]
    assert narrow[2] == threes
    assert not any(name.startswith(('conv1', 'layer1', 'layer2')) for name in narrow[3])


def test_what_cannot_be_is_told_with_what_can():
    rows = {'a': CHOICES, 'b': CHOICES}
    losses = tables(rows, lambda name, widths: 1 / widths.weight)
    costs = {'bytes': tables(rows, lambda name, widths: 100 * widths.weight),
             'other': tables(rows, lambda name, widths: 10.0 - widths.weight)}
    costs['bytes'].layers['fixed'] = {Widths(8): 1000}
    with pytest.raises(ValueError, match='bytes <= 1300 cannot be kept.*bytes from 1400 to 2600'):
        allocate(losses, costs, {'bytes': 1300})
    with pytest.raises(ValueError, match='other from 4 to 16; each alone, but not all together '
                                         r'\(within the others the least is bytes 2600, other 10'):
        allocate(losses, costs, {'bytes': 2000, 'other': 7})
    with pytest.raises(ValueError, match="'byte' has no table.*did you mean 'bytes'"):
        allocate(losses, costs, {'byte': 3})
    with pytest.raises(ValueError, match="'bytes' lack layer 'c'"):
        allocate(WidthTable({'c': {Widths(8): 0.0}}), costs, {})
    with pytest.raises(ValueError, match="'a' has nan at W4"):
        allocate(WidthTable({'a': {Widths(4): math.nan}}), costs, {})


def test_budgets_are_checked_without_losses():
    """Also where one choice a layer is left, and the limit is far from it."""
    choices = {'a': CHOICES, 'b': CHOICES[:1]}
    costs = {'bytes': tables(choices, lambda name, widths: 1e6 * widths.weight)}
    check_budgets(choices, costs, [{'bytes': 4e6}, {'bytes': 1e12}, {}])
    check_budgets(choices, costs, [{'bytes': 3.95e6}], slack={'bytes': 0.02})
    for limits in ({'bytes': 3.9e6}, {'bytes': 1.0}):
        with pytest.raises(ValueError, match='cannot be kept.*bytes from 4000000 to 10000000'):
            check_budgets(choices, costs, [{'bytes': 4e6}, limits], slack={'bytes': 0.02})
    with pytest.raises(ValueError, match="'byte' has no table"):
        check_budgets(choices, costs, [{'byte': 1.0}])
    # Inputs that are shared have no width in common.
    with pytest.raises(ValueError, match='give them common widths'):
        check_budgets({'a': [Widths(2, 4)], 'b': [Widths(2, 8)]}, {
            'bytes': tables({'a': [Widths(2, 4)], 'b': [Widths(2, 8)]}, lambda *_: 1.0)},
            [{'bytes': 9.0}], [frozenset('ab')])


def test_a_solver_that_calls_broken_equations_optimal_is_asked_again(monkeypatch):
    """As HiGHS did in SciPy's issue 24141: such a plan seems cheap, a layer has no width."""
    import scipy.optimize

    losses, costs = random_tables(6, 0)
    limits, real, broken = {'weight_bits': 4.0}, scipy.optimize.milp, []
    right = allocate(losses, costs, limits, gap=0)

    def milp(*args, **kwargs):
        found = real(*args, **kwargs)
        if not broken:
            broken.append(np.flatnonzero(found.x > 0.5)[0])
            found.x[broken[0]] = 0
        return found

    monkeypatch.setattr(scipy.optimize, 'milp', milp)
    assert allocate(losses, costs, limits, gap=0).widths == right.widths
    assert broken
