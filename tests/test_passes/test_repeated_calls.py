"""Layers called several times in one forward are solved with the inputs of all their calls."""

import numpy as np
import pytest
import torch
from lockstep_nets import Chain, Stages
from pyramids import Chained, Detector, LevelHead, Recurrent
from torch import nn

from mmbitsplit.calibration import ReplayPoint, calibrate
from mmbitsplit.models import watch
from mmbitsplit.passes.owner_runs import OwnerRuns
from mmbitsplit.passes.repeated_calls import find_owners


class ChangesItsInput(LevelHead):
    """Changes the maps in place and empties the list it is given."""

    def forward(self, levels):
        outputs = []
        while levels:
            level = levels.pop(0)
            outputs.append(self.single(level.mul_(0.5).add_(0.1)))
        return outputs


def unseen_sum(first, x):
    """NumPy's work is not seen by a dispatch mode: the sum seems to have no sources."""
    return torch.from_numpy(first.numpy() + x.numpy())


def masked(first, x):
    return x * (first > first.mean()).to(x)


def switched(first, x):
    return x if float(first.mean()) > 0.2 else -x


HEADS = {
    'one head': lambda: [LevelHead()],
    'two heads': lambda: [LevelHead(), LevelHead()],
    'changes its input': lambda: [ChangesItsInput()],
    'feeds itself': lambda: [Recurrent()],
    'feeds itself thrice': lambda: [Recurrent(3)],
    'two layers feed each other': lambda: [Recurrent(2, pair=True)],
    'two layers feed each other thrice': lambda: [Recurrent(3, pair=True)],
    'a chain': lambda: [Chained()],
    'a chain and a shortcut': lambda: [Chained(torch.add)],
    'a chain and an unseen shortcut': lambda: [Chained(unseen_sum)],
    'a chain and a mask': lambda: [Chained(masked)],
    'a chain and a switch': lambda: [Chained(switched)],
    'a head of each kind': lambda: [LevelHead(), Recurrent(), ChangesItsInput()],
}


@pytest.mark.slow
@pytest.mark.parametrize('heads', HEADS)
def test_shared_heads_agree_with_naive_calibration(heads, seeded, images, make_spec,
                                                   assert_like_naive):
    batches = [*images(1, size=8), *images(2, size=12)]
    model, report = assert_like_naive(lambda: seeded(lambda: Detector(*HEADS[heads]())), batches,
                                      make_spec())
    steps = {'feeds itself': 2, 'feeds itself thrice': 3}
    for layer in report.layers:
        expected = 1 if not layer.name.startswith('heads') else 3  # levels
        if '.cell' in layer.name and heads in steps:
            expected *= steps[heads]
        if '.cell' not in layer.name and '.back' not in layer.name:
            assert layer.calls == expected * len(batches), layer.name


class Scrubs(nn.Module):
    """A chain whose steps between layers make numbers of NaN."""

    def __init__(self, step):
        super().__init__()
        self.convs, self.step = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3)), step

    def forward(self, levels):
        outputs = []
        for x in levels:
            first = self.convs[0](x)
            second = self.convs[1](self.step(first, x))
            outputs.append(self.convs[2](self.step(second, first)))
        return outputs


def assigned(new, old):
    kept = torch.zeros_like(new)
    kept[new > 0] = new[new > 0]
    return kept


SCRUBBING = {
    'where': lambda new, old: torch.where(new > 0, new, torch.zeros_like(new)),
    'masked_fill': lambda new, old: new.masked_fill(~(new > 0), 0),
    'nan_to_num': lambda new, old: torch.nan_to_num(new.relu()),
    'boolean index': assigned,
    'a known tensor through an unknown mask': lambda new, old: torch.where(new > 0.1, old, -old),
    'the greater one': lambda new, old: torch.fmax(new, torch.zeros_like(new)),
    'a large threshold': lambda new, old: old * (new.abs() > 40) + new.nan_to_num().relu(),
    'an order': lambda new, old: old.flatten(1).gather(
        1, new.flatten(1).argsort(1)).view_as(old),
    'a decision for each map': lambda new, old: old if float(new.mean()) > 0 else old.flip(-1),
    'a number': lambda new, old: old * (1 + int(torch.nan_to_num(new).sum() > 0)),
    'NumPy': lambda new, old: torch.from_numpy(np.nan_to_num(new.numpy(), nan=0.5)).relu(),
}


@pytest.mark.slow
@pytest.mark.parametrize('step', SCRUBBING)
def test_values_that_are_not_known_yet_pass_for_no_true_ones(step, seeded, images, make_spec,
                                                            assert_like_naive):
    batches = [*images(1, size=8), *images(2, size=12)]
    assert_like_naive(lambda: seeded(lambda: Detector(Scrubs(SCRUBBING[step]))), batches,
                      make_spec())


def test_a_layer_that_gets_other_inputs_in_the_end_is_named(seeded, images, make_spec, run_model):
    generator = np.random.default_rng(0)  # that nobody puts back

    def step(new, old):
        return new.relu() + float(generator.random())

    with pytest.raises(ValueError, match=r"'heads.0.convs.1'.* 3 times .*other inputs.*skip=True"):
        calibrate(seeded(lambda: Detector(Scrubs(step))), images(), make_spec(), run=run_model)


def test_heads_that_pass_nan_on_are_run_again_for_the_first_batch_alone(seeded, images, make_spec,
                                                                        run_model):
    runs = {}
    for step in ('relu', 'where'):
        model = seeded(lambda step=step: Detector(Scrubs(
            (lambda new, old: new.relu()) if step == 'relu' else SCRUBBING[step])))
        runs[step] = []
        model.heads[0].step = (lambda taken, log: lambda new, old: (log.append(1), taken(
            new, old))[1])(model.heads[0].step, runs[step])
        calibrate(model, images(8), make_spec(), run=run_model)
    assert len(runs['where']) > 1.7 * len(runs['relu'])


def test_a_layer_used_again_further_on(seeded, images, make_spec, assert_like_naive):
    assert_like_naive(lambda: seeded(Chain), images(), make_spec())


class TiedNames(nn.Module):
    """One layer registered under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.other = self.one

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.one(x) + self.other(x.flip(-1))


def test_one_layer_under_two_names(seeded, images, make_spec, assert_like_naive):
    model, report = assert_like_naive(lambda: seeded(TiedNames), images(), make_spec())
    assert [layer.name for layer in report.layers] == ['stem', 'one']
    assert model.one is model.other


def test_no_layer_is_computed_twice(seeded, images, make_spec, run_model, layer_calls):
    batches = images(4)
    model = seeded(lambda: Detector(LevelHead(), LevelHead()))
    entered = []
    model.neck.register_forward_pre_hook(lambda module, args: entered.append(1))
    prepared, report = calibrate(model, batches, make_spec(), run=run_model)
    assert len(entered) == 2 * len(batches) + 4  # one opened, one watched, one compared
    for layer in report.layers:  # once a call in each pass, shared or not, and when compared
        assert layer_calls[id(prepared.layers[layer.name])] == \
            2 * layer.calls + layer.calls / len(batches), layer.name


@pytest.mark.parametrize('aside, forgotten, most', [
    (None, {0, 1, 2}, 2), (torch.add, {1, 2}, 3), (masked, {1, 2}, 3), (switched, {1, 2}, 3),
    (unseen_sum, set(), 4)])
def test_outputs_that_nobody_reads_again_are_forgotten(aside, forgotten, most, seeded, images,
                                                       make_spec, run_model, monkeypatch):
    held, runs = [], []
    probe, finish = OwnerRuns._probe, OwnerRuns._finish

    def counting_probe(self, *args):
        probe(self, *args)
        held.append(len({name for name, _ in self.outputs}))

    def counting_finish(self, *args):
        result = finish(self, *args)
        runs.append({*self.outputs.forgotten})
        return result

    monkeypatch.setattr(OwnerRuns, '_probe', counting_probe)
    monkeypatch.setattr(OwnerRuns, '_finish', counting_finish)
    calibrate(seeded(lambda: Detector(Chained(aside))), images(), make_spec(), run=run_model)
    expected = {f'heads.0.convs.{index}' for index in forgotten}
    assert runs and all(run == expected for run in runs)
    assert max(held) <= most


def test_owners_are_the_smallest_calls_around(seeded, images):
    model = seeded(lambda: Detector(LevelHead(), Recurrent()))
    flow = watch(model, lambda: model(images(1)[0]))
    owners = find_owners(flow, set(flow.calls))
    assert set(owners) == {'heads.0', 'heads.1'}
    assert owners['heads.1'].layers == {'heads.1.enter', 'heads.1.cell', 'heads.1.leave'}
    chain = seeded(Chain)
    flow = watch(chain, lambda: chain(images(1)[0]))
    owners = find_owners(flow, set(flow.calls))
    assert {name: owner.layers for name, owner in owners.items()} == {
        '': {'stem', 'shared', 'middle', 'end'}}
    assert find_owners(flow, {'stem', 'end'}) == {}


def test_a_head_may_be_skipped(seeded, images, make_spec, run_model):
    spec = make_spec(overrides=[dict(match='heads.*.cell', skip=True)])
    _, report = calibrate(seeded(lambda: Detector(Recurrent())), images(), spec, run=run_model)
    assert not any('cell' in layer.name for layer in report.layers)
    assert sum('heads' in layer.name for layer in report.layers) == 2


def test_a_replay_point_inside_an_owner(seeded, make_spec, run_model):
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(20, 6, generator=generator) for _ in range(4)]
    model = seeded(Stages)
    _, report = calibrate(model, batches, make_spec(), run=run_model,
                          replay_points=[ReplayPoint(model, 'select')])
    assert {layer.name: layer.calls for layer in report.layers} == {
        'stem': 4, 'shared': 8, 'score': 4, 'end': 4}


def test_run_may_call_parts_of_the_model_itself(seeded, images, make_spec, assert_like_naive):
    def run(model, batch):  # no module call is around both uses of the head
        levels = model.neck(batch)
        return [model.heads[0](levels[:2]), model.heads[0](levels[1:]), model.end(levels[-1])]

    assert_like_naive(lambda: seeded(lambda: Detector(LevelHead())), images(), make_spec(),
                      run=run)


def test_outputs_changed_in_place_do_not_reach_the_next_run(seeded, images, make_spec,
                                                            assert_like_naive):
    class AddsInPlace(LevelHead):
        def single(self, x):
            out = self.towers[0](x)
            kept = self.classify(out)
            kept += 1
            return kept.relu_(), self.regress(self.towers[1](out.mul_(2)))

    assert_like_naive(lambda: seeded(lambda: Detector(AddsInPlace())), images(), make_spec())


def test_outputs_changed_in_place_that_join_what_comes_later(seeded, images, make_spec,
                                                             assert_like_naive):
    class JoinsLate(LevelHead):
        def single(self, x):
            early = self.classify(x)
            early += 1
            late = self.towers[1](self.towers[0](x))
            return self.regress(late + early.sum(1, keepdim=True))

    assert_like_naive(lambda: seeded(lambda: Detector(JoinsLate())), images(), make_spec())


def test_fewer_levels_on_some_images(seeded, images, make_spec, assert_like_naive):
    class Adaptive(LevelHead):
        def forward(self, levels):
            return super().forward([level for level in levels if level.shape[-1] >= 3])

    batches = [*images(2, size=12), *images(1, size=8), *images(1, size=12)]
    _, report = assert_like_naive(lambda: seeded(lambda: Detector(Adaptive())), batches,
                                  make_spec())
    assert {layer.calls for layer in report.layers if 'heads' in layer.name} == {11}
