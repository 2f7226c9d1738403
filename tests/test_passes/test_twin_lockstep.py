"""Both branches of a batch give what running the float and the quantized model again gives."""

import copy
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from lockstep_nets import Branches, Chain, Counter, Optional, Stages, TwoStage
from pyramids import Chained, Detector, LevelHead, Recurrent
from thread_nets import CONTEXTS, Inside
from torch import nn
from unit_methods import WATCHER, LearnedScale, known  # noqa: F401

from mmbitsplit.calibration import ReplayPoint, calibrate
from mmbitsplit.models import prepare, watch
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.passes import unit_evidence
from mmbitsplit.passes.thread_state import ThreadState
from mmbitsplit.passes.unit_module import UnitModule, input_of
from mmbitsplit.planning import make_plan

COARSE = dict(weight=dict(num_bits=3))
WATCHED, LEARNED = dict(method=dict(type='Watched')), dict(method=dict(type='LearnedScale'))


@pytest.fixture
def problems(monkeypatch):
    """What methods were given, in order; LearnedScale too."""
    found, solve = [], LearnedScale.solve_unit

    def note(problem, then):
        found.append(problem)
        return then(problem)

    monkeypatch.setitem(WATCHER, 'solve', lambda problem: note(problem, lambda _: ()))
    monkeypatch.setattr(LearnedScale, 'solve_unit', lambda self, problem: note(
        problem, partial(solve, self)))
    return found


@contextmanager
def calls_of(function: UnitModule):
    """Collects copies of what a unit's calls are given and give."""
    seen, handles = [], [
        function.modules[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append([input_of(args, kwargs).clone(), None]),
            with_kwargs=True),
        function.modules[-1].register_forward_hook(
            lambda module, args, output: seen[-1].__setitem__(1, output.clone()))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_again(model, batches, unit):
    """By batch, the calls of a unit."""
    function, found = UnitModule.of(unit, model), {}
    for number, batch in enumerate(copy.deepcopy(batches)):
        with calls_of(function) as seen:
            model(batch)
        found[number] = seen
    return found


def prepared_float(model, batches, spec):
    """The float model as calibration prepares it."""
    flows = [watch(model, lambda batch=batch: model(batch), inputs=batch) for batch in batches]
    merged = merge_flows(flows)
    flow = flows[0] if merged.calls == flows[0].calls else merged
    prepare(model, flow, make_plan(model, flow, spec))
    return model


def all_calls(problem):
    """Those to fit to and those to judge on, which are the same where none are held out."""
    return (*problem.fit, *(problem.judge if problem.judge is not problem.fit else ()))


NETS = {
    'residual': None,
    'branches': lambda: Branches(),
    'some batches skip a branch': lambda: Optional(),
    'two shared heads': lambda: Detector(LevelHead(), LevelHead()),
    'a chain and a shortcut': lambda: Detector(Chained(torch.add)),
    'a layer used again further on': lambda: Chain(),
}


@pytest.mark.parametrize('net', NETS)
def test_both_branches_give_what_running_again_gives(net, seeded, residual_net, images, make_spec,
                                                     run_model, problems):
    make = residual_net if net == 'residual' else partial(seeded, NETS[net])
    batches, spec = [*images(2, size=8), *images(2, size=12)], make_spec(**COARSE, **LEARNED)
    batches[1] = -batches[1].abs()
    quantized, plain = make(), make()
    prepared_float(plain, copy.deepcopy(batches), spec)
    _, report = calibrate(quantized, copy.deepcopy(batches), spec, run=run_model)
    assert len(problems) == len({layer.unit_taken and problem.unit for problem in problems
                                 for layer in report.layers})
    assert 'learned scale' in {layer.unit_taken for layer in report.layers}
    for problem in problems:
        floats = run_again(plain, batches, problem.unit)
        codes = run_again(quantized, batches, problem.unit)
        for number in floats:
            calls = [call for call in all_calls(problem) if call.batch == number]
            assert len(calls) == len(floats[number])
            for call, (x, y), (x_codes, _) in zip(calls, floats[number], codes[number]):
                assert torch.equal(call.float_input, x), problem.unit
                assert torch.equal(call.float_output, y), problem.unit
                torch.testing.assert_close(call.quantized_input, x_codes)


def two_stages():
    model = TwoStage()
    return model, [ReplayPoint(model, 'select')]


def two_stages_by_indices():
    model = TwoStage()
    return model, [ReplayPoint(model, 'select', indices_only=True)]


def without_points(make):
    return make(), []


class Remembers(nn.Module):
    """Draws random numbers, and keeps a feature and a count on itself between layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.end, self.kept, self.count = nn.Conv2d(4, 2, 1), None, 0

    def forward(self, x):
        self.kept = torch.nn.functional.dropout(torch.relu(self.stem(x)), 0.2)
        self.count += 1
        x = torch.relu(self.middle(self.kept))
        x = self.end(x + self.kept * self.count + torch.rand_like(x))
        self.kept, self.count = None, 0
        return x


SAME_CODES = {
    'random numbers and attributes': partial(without_points, Remembers),
    'replayed results': two_stages,
    'replayed indices': two_stages_by_indices,
    'feeds itself': partial(without_points, lambda: Detector(Recurrent())),
    'inference mode': partial(without_points, partial(Inside, CONTEXTS['inference_mode'])),
    'gradients': partial(without_points, partial(Inside, CONTEXTS['enable_grad'])),
    'default dtype': partial(without_points, partial(Inside, CONTEXTS['default dtype'])),
}


@pytest.mark.parametrize('net', SAME_CODES)
def test_a_method_that_improves_nothing_gives_the_codes_of_its_layers(
        net, seeded, images, make_spec, run_model, assert_same_state, problems):
    before, models = ThreadState.now(), []
    for method in ({}, WATCHED):
        model, points = _seeded_with_points(seeded, SAME_CODES[net])
        calibrate(model, images(), make_spec(**COARSE, **method), run=run_model,
                  replay_points=points)
        models.append(model)
    assert_same_state(*models)
    assert problems and ThreadState.now() == before
    for problem in problems:
        assert not any(call.float_input.is_inference() for call in problem.fit)


def _seeded_with_points(seeded, make):
    points = []

    def build():
        model, found = make()
        points.extend(found)
        return model
    return seeded(build), points


def test_a_replay_point_inside_an_owner(seeded, make_spec, run_model, assert_same_state, problems):
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(20, 6, generator=generator) for _ in range(4)]
    models = [seeded(Stages), seeded(Stages)]
    for model, method in zip(models, ({}, WATCHED)):
        calibrate(model, batches, make_spec(**method), run=run_model,
                  replay_points=[ReplayPoint(model, 'select')])
    assert_same_state(*models)


@pytest.mark.parametrize('differ', [False, True])
def test_every_image_runs_twice_or_once_more_where_calls_are_counted(
        differ, seeded, images, make_spec, run_model, problems):
    calls, batches = [], [batch.abs() for batch in images(5)]
    if differ:
        batches[3] = -batches[3]
    model = nn.Sequential(Counter(calls.append), seeded(Optional))
    _, report = calibrate(model, batches, make_spec(**WATCHED), run=run_model)
    assert report.calibration['forwards_of_an_image'] == (3 if differ else 2)
    opened, watched, compared, decided = 1, 1, 1, 1
    once = opened + watched + 2 * compared + decided
    if not differ:
        assert len(calls) == 2 * len(batches) + once
    else:  # a first attempt ends where a batch turns out to differ
        assert 3 * len(batches) + once < len(calls) <= 5 * len(batches) + 2 * once
    assert {len(all_calls(problem)) for problem in problems[-3:]} == (
        {5, 4} if differ else {5})


def test_memory_for_whole_maps_or_crops(residual_net, images, make_spec, run_model, problems,
                                        monkeypatch):
    """With little memory convolutions are seen on crops, which are parts of the whole maps."""
    batches = images(4, size=40)
    for budget in (1 << 30, 60_000):
        monkeypatch.setattr(unit_evidence, 'UNIT_BYTES', budget)
        monkeypatch.setattr('mmbitsplit.calibration.unit_solver.UNIT_BYTES', budget)
        _, report = calibrate(residual_net(), copy.deepcopy(batches), make_spec(**WATCHED),
                              run=run_model)
        assert not any(layer.notes for layer in report.layers)
    whole, part = ({problem.unit.name: problem for problem in group}
                   for group in (problems[:5], problems[5:]))
    for name in ('stem', 'blocks.0', 'blocks.1', 'regress'):
        for call, cut in zip(whole[name].fit, part[name].fit, strict=True):
            assert sum(value.nbytes for value in (
                cut.float_input, cut.quantized_input, cut.float_output)) <= 60_000
            assert cut.float_input.shape[-1] < 40 and cut.float_output.shape[-1] == 8
            assert is_part_of(cut.float_input[0], call.float_input)
            assert is_part_of(cut.quantized_input[0], call.quantized_input)
            assert is_part_of(cut.float_output[0], call.float_output)


def is_part_of(crop, maps):
    """Whether a crop (C, h, w) stands somewhere in maps (B, C, H, W)."""
    size = crop.shape[-1]
    windows = maps.unfold(2, size, 1).unfold(3, size, 1)  # (B, C, rows, columns, h, w)
    return bool((windows == crop[None, :, None, None]).all(1).all(-1).all(-1).any())


class RoIBranch(TwoStage):
    """The second stage is one unit of two layers, on the rows that the first stage picks."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(self.first, nn.ReLU(), self.second)
        del self.first, self.second

    def forward(self, x):
        x = torch.relu(self.stem(x))
        chosen = self.select(self.score(x))
        return self.branch(x.flatten(2).transpose(1, 2)[chosen[:, 0], chosen[:, 1]])


def test_a_branch_on_picked_rows_is_a_unit(seeded, images, make_spec, run_model, problems):
    model, plain, batches = seeded(RoIBranch), seeded(RoIBranch), images()
    spec = make_spec(weight=dict(num_bits=2), **LEARNED)
    prepared_float(plain, batches, spec)
    calibrate(model, batches, spec, run=run_model, replay_points=[ReplayPoint(model, 'select')])
    problem, = (problem for problem in problems if problem.unit.name == 'branch')
    assert problem.unit.layers == ('branch.0', 'branch.2')
    floats = run_again(plain, batches, problem.unit)
    for call in all_calls(problem):
        assert torch.equal(call.float_input, floats[call.batch][0][0])
        assert torch.equal(call.float_output, floats[call.batch][0][1])
        # Row by row the same places of the image: they are close, though codes are coarse.
        rows = torch.nn.functional.cosine_similarity(call.quantized_input, call.float_input)
        assert rows.median() > 0.9
