"""Two passes pick the same rows; what is picked are the values of the pass that runs."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import ReplayPoint, calibrate
from mmbitsplit.passes.replay import Tape, recording, replaying


class Chooser:
    """Picks rows of x by scores; a subclass of each way of picking would say no more."""

    def __init__(self, pick):
        self.pick = pick

    def choose(self, x, scores):
        return self.pick(x, scores)


X = torch.arange(12.0).view(6, 2)
FLOAT = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])
QUANTIZED = torch.tensor([0.9, 0.1, 0.2, 0.7, 0.8, 0.3])


def passes(pick, quantized=X + 100):
    """What the method gives in the float pass, and with other values in the quantized one."""
    chooser, tape = Chooser(pick), Tape()
    point = [ReplayPoint(chooser, 'choose', indices_only=True)]
    with recording(point, tape, lambda: 0):
        before = chooser.choose(X, FLOAT)
    with replaying(point, tape, lambda: 0):
        after = chooser.choose(quantized, QUANTIZED)
    assert 'choose' not in vars(chooser)
    assert chooser.choose(X, FLOAT) is not None
    return before, after


@pytest.mark.parametrize('pick', [
    lambda x, s: x[s.topk(3).indices], lambda x, s: x[torch.topk(s, 3)[1]],
    lambda x, s: x[s.argsort(descending=True)[:3]], lambda x, s: x[torch.sort(s)[1]],
    lambda x, s: x[s > 0.5], lambda x, s: x[(0.5 < s).nonzero()[:, 0]],
    lambda x, s: x[s.argmax()], lambda x, s: x[torch.max(s, 0).indices],
    lambda x, s: x.index_select(0, s.topk(k=2, dim=0)[1].flip(0)),
    lambda x, s: x[[i for i in range(6) if bool(s[i] >= 0.3)]],
    lambda x, s: x if s[0] > s[1] else x.flip(0), lambda x, s: x[(s * 5).long()],
    lambda x, s: copy.deepcopy({'x': x, 'index': s.topk(2)[1]})['x'][
        copy.deepcopy([x, s.topk(2)[1]])[1]],
    lambda x, s: x.gather(0, s.view(-1, 1).expand(-1, 2).argsort(0)),
    lambda x, s: torch.stack(sorted(x, key=lambda row: s[int(row[0] % 100) // 2]))])
def test_the_float_pass_decides_and_the_values_are_those_at_hand(pick):
    before, after = passes(pick)
    assert torch.equal(after, before + 100)
    assert not torch.equal(pick(X, FLOAT), pick(X, QUANTIZED))  # else nothing was tested


@pytest.mark.parametrize('pick', [
    lambda x, s: s.topk(3), lambda x, s: s.topk(3, 0), lambda x, s: torch.topk(s, k=3, dim=-1),
    lambda x, s: torch.topk(input=s, k=3), lambda x, s: s.sort(descending=True),
    lambda x, s: torch.sort(s, stable=True, dim=0), lambda x, s: s.sort(0, True)])
def test_sorted_values_belong_to_their_indices(pick):
    before, after = passes(pick)
    assert torch.equal(before.indices, after.indices)
    assert torch.equal(after.values, QUANTIZED[before.indices])
    assert type(after) is type(before)


def test_extremes_are_true_and_their_indices_those_of_the_float_pass():
    before, after = passes(lambda x, s: s.view(2, 3).max(1))
    assert torch.equal(after.values, QUANTIZED.view(2, 3).amax(1))
    assert torch.equal(after.indices, before.indices)


def test_a_mask_that_is_filled_in_place_stays_the_same_tensor():
    def pick(x, s):
        mask = torch.zeros(6, dtype=torch.bool)
        view = mask[:]
        torch.gt(s, 0.5, out=mask)
        view |= s.lt(0.15)
        return x[mask]
    before, after = passes(pick)
    assert torch.equal(after, before + 100)


def test_values_alone_are_not_touched():
    before, after = passes(lambda x, s: (x * s.view(-1, 1)).softmax(0))
    assert torch.equal(after, ((X + 100) * QUANTIZED.view(-1, 1)).softmax(0))


def test_a_call_recorded_whole_inside_is_one_result():
    inner = Chooser(lambda x, s: x[s.topk(2)[1]].sum(0).topk(1)[1])
    outer = Chooser(lambda x, s: x[inner.choose(x, s)] + copy.deepcopy(x[s.argmax()]))
    tape = Tape()
    points = [ReplayPoint(inner, 'choose'), ReplayPoint(outer, 'choose', indices_only=True)]
    with recording(points, tape, lambda: 0):
        before = outer.choose(X, FLOAT)
    assert len(tape.results[0]) == 2
    with replaying(points, tape, lambda: 0):
        assert torch.equal(outer.choose(X + 100, QUANTIZED), before + 200)


def test_calls_inside_a_call_recorded_whole_are_not_recorded_again():
    inner = Chooser(lambda x, s: s.topk(2)[1])
    outer = Chooser(lambda x, s: x[inner.choose(x, s)])
    for indices_only in (False, True):
        tape = Tape()
        points = [ReplayPoint(inner, 'choose', indices_only=indices_only),
                  ReplayPoint(outer, 'choose')]
        with recording(points, tape, lambda: 0):
            before = outer.choose(X, FLOAT), outer.choose(-X, FLOAT)
        with replaying(points, tape, lambda: 0):
            after = outer.choose(X, QUANTIZED), outer.choose(-X, QUANTIZED)
        assert all(torch.equal(*pair) for pair in zip(before, after))


def test_a_point_that_is_not_run_decides_nothing():
    with pytest.raises(ValueError, match="method='choose'.*exclude each other"):
        ReplayPoint(Chooser(None), 'choose', instead=lambda: None, indices_only=True)


class TwoStage(nn.Module):
    """Scores rows, picks the best, and goes on with them in layers called once or several times.

    The picking method holds layers itself, as ``pre_decoder`` of two-stage DETRs does.
    """

    def __init__(self, shared=False):
        super().__init__()
        self.embed, self.score, self.map = nn.Linear(8, 32), nn.Linear(32, 1), nn.Linear(32, 32)
        self.decoder = nn.ModuleList([nn.Linear(32, 32)] * 2 if shared else
                                     [nn.Linear(32, 32), nn.Linear(32, 32)])
        self.head = nn.Linear(32, 4)

    def select(self, x):
        index = self.score(x)[..., 0].topk(20, 1).indices
        return self.map(x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])))

    def forward(self, x):
        x = self.select(self.embed(x).relu())
        for layer in self.decoder:
            x = layer(x).relu()
        return self.head(x)


def quantize(make_spec, points, shared=False):
    torch.manual_seed(0)
    model = TwoStage(shared).eval()
    batches = [torch.randn(1, 80, 8) for _ in range(4)]
    spec = make_spec(weight={'num_bits': 4}, activation={'num_bits': 4},
                     first_last={'weight_bits': 4, 'activation_bits': 4})
    _, report = calibrate(model, batches, spec, run=lambda model, x: model(x),
                          replay_points=points(model))
    return {layer.name: layer for layer in report.layers}, report


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('place', ['select', 'forward'])
def test_layers_after_a_selection_are_fitted_to_rows_of_the_same_things(make_spec, place, shared):
    without, told = quantize(make_spec, lambda model: [], shared)
    layers, silent = quantize(
        make_spec, lambda model: [ReplayPoint(model, place, indices_only=True)], shared)
    after = ['map', 'decoder.0', 'head']
    for name in after:
        assert layers[name].error < 0.3 < without[name].error
    for name in ('embed', 'score'):  # what comes before is as it was
        assert layers[name].error == without[name].error
    assert silent.selections == []
    (selection,) = told.selections
    assert (str(selection), selection.reaches) == ('topk in select', ('map',))
    assert any('topk in select' in note for note in without['map'].notes)
    assert not any('topk' in note for layer in layers.values() for note in layer.notes)
