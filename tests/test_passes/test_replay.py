"""Results recorded in one pass come out of the other; methods are put back."""

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.passes.replay import ReplayPoint, Tape, barrier, patched, recording, replaying


class Decoder:
    def __init__(self):
        self.calls = 0

    def decode(self, x):
        self.calls += 1
        return [x * 2, {'score': x + 1}]


def double(method):
    return lambda *args, **kwargs: (method(*args, **kwargs), 'wrapped')


def test_patched_wraps_instances_and_restores_the_class_method():
    one, other = Decoder(), Decoder()
    with patched([ReplayPoint(one, 'decode')], double):
        assert one.decode(1)[1] == 'wrapped'
        assert other.decode(1)[0] == 2
    assert 'decode' not in vars(one)
    assert one.decode(1)[0] == 2


def test_patched_restores_after_an_exception():
    decoder = Decoder()
    with pytest.raises(KeyError), patched([ReplayPoint(decoder, 'decode')], double):
        raise KeyError('in the middle')
    assert 'decode' not in vars(decoder)


def test_patched_restores_what_stood_on_the_instance():
    decoder = Decoder()
    decoder.decode = own = lambda x: 'own'
    with patched([ReplayPoint(decoder, 'decode')], double):
        assert decoder.decode(1) == ('own', 'wrapped')
    assert decoder.decode is own


def test_patched_restores_when_a_method_does_not_exist():
    decoder = Decoder()
    points = [ReplayPoint(decoder, 'decode'), ReplayPoint(decoder, 'no_such_method')]
    with pytest.raises(AttributeError), patched(points, double):
        pass
    assert vars(decoder) == {'calls': 0}


def test_patched_nests():
    decoder = Decoder()
    point = [ReplayPoint(decoder, 'decode')]
    with patched(point, double):
        with patched(point, double):
            assert decoder.decode(1)[0][1] == 'wrapped'
        assert decoder.decode(1)[1] == 'wrapped' and decoder.decode(1)[0] == [2, {'score': 2}]
    assert 'decode' not in vars(decoder)


def test_patched_forward_of_a_module_leaves_its_class_alone():
    layer = nn.Linear(2, 2)
    with patched([ReplayPoint(layer, 'forward')], lambda forward: lambda x: forward(x) * 0):
        assert not layer(torch.ones(1, 2)).any()
        assert nn.Linear(2, 2)(torch.ones(1, 2)).any()
    assert layer(torch.ones(1, 2)).any()


def test_replay_hands_out_results_by_batch_in_the_order_of_calls():
    decoder, tape, current = Decoder(), Tape(), {'batch': 0}
    point = [ReplayPoint(decoder, 'decode')]
    with recording(point, tape, lambda: current['batch']):
        for current['batch'] in (0, 1):
            for value in (1, 2):
                assert decoder.decode(10 * current['batch'] + value)
    assert decoder.calls == 4
    with replaying(point, tape, lambda: current['batch']):
        for value in (1, 2):  # batches take turns
            for current['batch'] in (1, 0):
                assert decoder.decode(torch.nan)[0] == 2 * (10 * current['batch'] + value)
    assert decoder.calls == 4


def test_results_are_copies():
    decoder, tape = Decoder(), Tape()
    point = [ReplayPoint(decoder, 'decode')]
    with recording(point, tape, lambda: 0):
        result = decoder.decode(torch.ones(3))
        result[0].zero_()
        result[1]['score'].zero_()
        result.append('more')
    with replaying(point, tape, lambda: 0):
        replayed = decoder.decode(None)
    assert torch.equal(replayed[0], torch.full((3,), 2.0)) and len(replayed) == 2
    assert torch.equal(replayed[1]['score'], torch.full((3,), 2.0))
    replayed[0].zero_()
    assert torch.equal(tape.results[0][0][0], torch.full((3,), 2.0))


def test_running_out_of_results_names_the_batch():
    decoder, tape = Decoder(), Tape()
    point = [ReplayPoint(decoder, 'decode')]
    with recording(point, tape, lambda: 3):
        decoder.decode(1)
    with replaying(point, tape, lambda: 3):
        decoder.decode(1)
        with pytest.raises(RuntimeError, match='Batch 3.*result 2.*made 1'):
            decoder.decode(1)
    with replaying(point, tape, lambda: 5), pytest.raises(RuntimeError, match='Batch 5'):
        decoder.decode(1)


def test_instead_is_called_in_both_passes_and_not_recorded():
    decoder, tape = Decoder(), Tape()
    point = [ReplayPoint(decoder, 'decode', instead=lambda x: 'instead')]
    for context in (recording, replaying):
        with context(point, tape, lambda: 0):
            assert decoder.decode(1) == 'instead'
    assert decoder.calls == 0 and not tape.results
    assert 'decode' not in vars(decoder)


def test_barrier_blinds_during_the_calls_only():
    decoder, log = Decoder(), []

    class Blind:
        def __enter__(self):
            log.append('blind')

        def __exit__(self, *error):
            log.append(decoder.calls)

    with barrier([ReplayPoint(decoder, 'decode')])(Blind):
        assert not log
        assert decoder.decode(1)[0] == 2
        assert log == ['blind', 1]
    assert 'decode' not in vars(decoder)


class Picks(nn.Module):
    """Layers on the rows that another layer scores best; the step that picks has a name."""

    def __init__(self, order, returns):
        super().__init__()
        self.a, self.score = nn.Linear(8, 32), nn.Linear(32, 1)
        self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 4)
        self.order, self.returns = order, returns

    def pick(self, x, scores):
        if self.returns == 'layers':
            scores = self.score(x)[..., 0]
        chosen = self.order(scores)[:, :20, None].expand(-1, -1, 32)
        return x.gather(1, chosen) if self.returns == 'rows' else chosen

    def forward(self, x):
        x = torch.relu(self.a(x))
        picked = self.pick(x, None if self.returns == 'layers' else self.score(x)[..., 0])
        rows = picked if self.returns == 'rows' else x.gather(1, picked)
        return self.c(torch.relu(self.b(rows)))


class Twice(nn.Module):
    """A head for two parts of the input, so that its layers are found by repeating it."""

    def __init__(self, *args):
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), Picks(*args)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return [self.head(x[:, ::2]), self.head(x[:, 1::2])]


def by_topk(scores):
    return scores.topk(20, 1).indices


def by_argsort(scores):
    return scores.argsort(1, descending=True)


@pytest.mark.parametrize('indices_only', [False, True])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('returns', ['indices', 'rows', 'layers'])
@pytest.mark.parametrize('order', [by_topk, by_argsort])
def test_a_named_selection_keeps_the_rows_of_both_passes_together(
        order, returns, shared, indices_only, seeded, make_spec, run_model):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 100, 8, generator=generator) for _ in range(4)]
    model = seeded(lambda: (Twice if shared else Picks)(order, returns))
    point = ReplayPoint(model.head if shared else model, 'pick', indices_only=indices_only)
    spec = make_spec(weight=dict(num_bits=6), activation=dict(num_bits=6),
                     first_last=dict(weight_bits=6, activation_bits=6))
    if returns == 'layers' and not indices_only:
        with pytest.raises(ValueError, match=r"score' is called inside.*indices_only=True"):
            calibrate(model, batches, spec, run=run_model, replay_points=[point])
        return
    _, report = calibrate(model, batches, spec, run=run_model, replay_points=[point])
    assert len(report.layers) == (5 if shared else 4)
    assert all(layer.error < 0.02 for layer in report.layers), {
        layer.name: layer.error for layer in report.layers}
