"""A layer's positions: joined over calls, none lost, none in both parts, inputs with outputs."""

from dataclasses import replace

import pytest
import torch

from mmbitsplit.calibration import Team, calibrate
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.sampling import is_held_out
from mmbitsplit.solving.positions import LayerPositions

GROUPS, INPUTS, OUTPUTS = 2, 3, 4


class Reports(Team):
    """The others hold so many positions to fit to and held out."""

    def __init__(self, *others: tuple[int, int]):
        self.size, self.others = 1 + len(others), others

    def gather(self, value):
        return [value, *(others if isinstance(value, tuple) else sum(others)
                         for others in self.others)]


def make_rows(held_out, team=None):
    """One call a mask; every position says in all its values which one it is."""
    captures, targets, first = [], [], 0
    for batch, mask in enumerate(held_out):
        mask = torch.as_tensor(mask, dtype=torch.bool)
        numbers = torch.arange(first, first + len(mask)).float()
        first += len(mask)
        nothing = torch.zeros(INPUTS)
        captures.append(CallCapture(
            patches=numbers.expand(GROUPS, INPUTS, -1).clone(), samples=torch.zeros(INPUTS, 0),
            low=nothing, high=nothing, held_out=mask, shape=(1, INPUTS), batch=batch))
        targets.append(-numbers.expand(GROUPS, OUTPUTS, -1).clone())
    return LayerPositions(captures, targets, team or Team())


def numbers_of(rows):
    """Which positions these are; inputs and outputs agree."""
    assert rows.x.shape == (GROUPS, INPUTS, rows.x.shape[-1])
    assert rows.y.shape == (GROUPS, OUTPUTS, rows.x.shape[-1])
    numbers = rows.x[0, 0]
    assert (rows.x == numbers).all() and (rows.y == -numbers).all()
    return numbers.long().tolist()


@pytest.mark.parametrize('held_out', [
    [[0, 0, 0], [1, 1], [0]], [[0, 1, 0, 1], [1, 0]], [[0, 0], [0, 1], [1, 1], []],
    [[], [], [1, 0]], [[1], [0]]], ids=str)
def test_every_position_is_fitted_to_or_held_out(held_out):
    rows = make_rows(held_out)
    mask = torch.tensor([bit for call in held_out for bit in call])
    before = [(capture.patches.clone(), target.clone())
              for capture, target in zip(rows.captures, rows.targets)]
    fit, judge = rows.split()
    assert numbers_of(fit) == (mask == 0).nonzero()[:, 0].tolist()
    assert numbers_of(judge) == (mask == 1).nonzero()[:, 0].tolist()
    fit.x.zero_(), judge.y.zero_()  # nothing is shared with what was captured
    for capture, target, (patches, outputs) in zip(rows.captures, rows.targets, before):
        assert torch.equal(capture.patches, patches) and torch.equal(target, outputs)


@pytest.mark.parametrize('held_out', [[[0, 0], [0]], [[1, 1, 1]], [[], [0]]], ids=str)
def test_without_one_of_the_parts_all_positions_are_both(held_out):
    parts = make_rows(held_out).split()
    everything = list(range(sum(map(len, held_out))))
    assert [numbers_of(part) for part in parts] == [everything, everything]


@pytest.mark.parametrize(('held_out', 'others', 'fit', 'judge'), [
    ([[0, 0], [0]], [(5, 5)], [0, 1, 2], []), ([[1, 1], [1]], [(0, 0), (5, 0)], [], [0, 1, 2]),
    ([[0, 0], [0]], [(5, 0)], [0, 1, 2], [0, 1, 2]), ([[0, 1]], [(0, 0)], [0], [1]),
    ([[]], [(5, 5)], [], [])], ids=str)
def test_processes_agree_on_whether_there_are_both_parts(held_out, others, fit, judge):
    """One that holds only one part must not take it for the other too."""
    parts = make_rows(held_out, Reports(*others)).split()
    assert [numbers_of(part) for part in parts] == [fit, judge]


@pytest.mark.parametrize('num_batches', [1, 4, 12])
@pytest.mark.parametrize('holdout', [0, 0.125, 0.25, 0.5])
def test_split_keeps_the_holdout_of_the_sampling(num_batches, holdout):
    masks = [is_held_out(batch, num_batches, 16, holdout) for batch in range(num_batches)]
    fit, judge = make_rows(masks).split()
    total = 16 * num_batches
    if holdout == 0:
        assert numbers_of(fit) == numbers_of(judge) == list(range(total))
    else:
        held_out = numbers_of(judge)
        assert sorted(numbers_of(fit) + held_out) == list(range(total))
        assert 0 < len(held_out) <= holdout * total
        if num_batches * holdout >= 1:  # whole batches
            assert len({number // 16 for number in held_out}) * 16 == len(held_out)


@pytest.mark.parametrize('sizes', [[100], [40, 60], [5, 0, 90, 5], [1] * 100],
                         ids=lambda sizes: f'{len(sizes)} calls')
@pytest.mark.parametrize('most', [1, 5, 17, 25, 50, 1000])
def test_thinned_positions_are_spread_evenly(sizes, most):
    rows = make_rows([[0] * size for size in sizes])
    parts = [numbers_of(part) for part in rows.thin(most)]
    step = max(1, 100 // (2 * most))
    first, expected = 0, []
    for size in sizes:
        expected += range(first, first + size, step)
        first += size
    assert sorted(sum(parts, [])) == expected and all(part == sorted(part) for part in parts)
    assert abs(len(parts[0]) - len(parts[1])) <= len(sizes) and max(map(len, parts)) <= len(
        sizes) + 2 * most
    assert min(map(len, parts)) >= min(50, most) or len(sizes) == 1


def test_calls_of_one_position_serve_both_parts():
    assert [numbers_of(part) for part in make_rows([[0]] * 5).thin(100)] == [[0, 2, 4], [1, 3]]


def test_thinning_looks_at_held_out_positions_too():
    parts = make_rows([[0, 1, 0, 1], [1, 1]]).thin(1)  # every third, turn about
    assert [numbers_of(part) for part in parts] == [[0], [3, 4]]


@pytest.mark.parametrize(('others', 'step'), [([(0, 0)], 1), ([(5, 5)], 2), ([(20, 0)] * 2, 5)])
def test_thinning_counts_the_positions_of_all_processes(others, step):
    """About as many in all as one process alone would take."""
    parts = make_rows([[0] * 10], Reports(*others)).thin(5)
    assert sorted(sum(map(numbers_of, parts), [])) == list(range(0, 10, step))


def test_each_process_thins_its_calls_as_one_process_would():
    sizes = [3, 8, 1, 1, 5]
    whole = make_rows([[0] * size for size in sizes])
    for mine in ([0, 2, 4], [1, 3]):
        others = sum(sizes) - sum(sizes[batch] for batch in mine)
        share = LayerPositions([whole.captures[batch] for batch in mine],
                          [whole.targets[batch] for batch in mine], Reports((others, 0)))
        held = {number for batch in mine for number in range(sum(sizes[:batch]),
                                                             sum(sizes[:batch + 1]))}
        for found, expected in zip(share.thin(4), whole.thin(4)):
            assert numbers_of(found) == [n for n in numbers_of(expected) if n in held]


def test_dtypes_and_order_of_calls_are_kept():
    rows = make_rows([[0, 0, 1], [0, 1]])
    double = LayerPositions([replace(capture, patches=capture.patches.double())
                        for capture in reversed(rows.captures)], rows.targets[::-1], Team())
    fit, judge = double.split()
    assert fit.x.dtype == torch.float64 and fit.y.dtype == torch.float32
    assert numbers_of(fit) == [3, 0, 1]
    assert numbers_of(judge) == [4, 2]


@pytest.mark.parametrize('batch', range(4))
def test_one_position_in_any_batch_is_in_both_thin_halves(batch):
    masks = [[] for _ in range(4)]
    masks[batch] = [False]
    for half in make_rows(masks).thin(100):
        assert half.x.shape[-1] == half.y.shape[-1] == 1


class One(torch.nn.Module):
    """A layer that one image alone reaches, with one position."""

    def __init__(self):
        super().__init__()
        self.c, self.m, self.h = (torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 8),
                                  torch.nn.Linear(8, 4))

    def forward(self, x):
        y = torch.relu(self.c(x)).mean((2, 3))
        return self.h(torch.relu(self.m(y)) if x.mean() > 0.5 else y)


@pytest.mark.parametrize('mode', ['per_tensor', 'ecaq'])
@pytest.mark.parametrize('batch', range(4))
def test_a_layer_with_one_position_is_calibrated_whichever_batch_has_it(
        batch, mode, seeded, images, make_spec, run_model):
    batches = [image[:1] for image in images(4)]
    batches[batch] = batches[batch] + 2
    _, report = calibrate(seeded(One), batches, make_spec(activation=dict(mode=mode)),
                          run=run_model)
    found = {layer.name: layer for layer in report.layers}
    assert found['m'].rows == 1 and found['m'].error < 0.01


@pytest.mark.parametrize('count, others', [(1, []), (2, [1]), (3, [1]), (6, [1, 3, 5])])
def test_every_second_batch_is_for_judging_the_rest(count, others):
    rows = make_rows([[False] * 5] * count)
    assert rows.other_batches() == frozenset(others)
    if others:
        fit, judge = map(numbers_of, rows.thin_apart(10000, rows.other_batches()))
        assert sorted({number // 5 for number in judge}) == others
        assert sorted(fit + judge) == list(range(5 * count))


def test_batches_apart_are_thinned_evenly():
    rows = make_rows([[False] * 64] * 5)
    fit, judge = map(numbers_of, rows.thin_apart(48, rows.other_batches()))
    assert {number // 64 for number in fit} == {0, 2, 4} and len(fit) == 48
    assert {number // 64 for number in judge} == {1, 3} and len(judge) == 64
