"""A model of several widths from one calibration: each width is solved on its own inputs."""

import copy

import pytest
import torch
from pyramids import LevelHead
from thread_team import together
from torch import nn

from mmbitsplit.calibration import Journal, calibrate, layer_solver, width_solver
from mmbitsplit.calibration.width_solver import WidthPairs, _prefixes
from mmbitsplit.functional import narrower_codes
from mmbitsplit.functional.stored_widths import solution_as_stored
from mmbitsplit.methods import read_request
from mmbitsplit.models import set_bits, widths_of
from mmbitsplit.passes.width_lockstep import Prefix

WIDTHS = [3, 4, 8]


class Chain(nn.Module):
    """First and last layers around two inner ones, and a head that two levels share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False)
        self.head = LevelHead()

    def forward(self, x):
        large = torch.relu(self.stem(x))
        return self.head([large, torch.relu(self.down(nn.functional.silu(self.inner(large))))])


def request(num_images=6, **method):
    return read_request(dict(
        method=dict(type='NestedBitSplit', widths=WIDTHS, effort='fast', **method),
        calibration=dict(num_images=num_images, rows_per_layer=512, batch_size=1)))


@pytest.fixture
def batches(images):
    return images(6)


def calibrated(batches, seeded, call, spec=None, model=None, **options):
    model = seeded(Chain) if model is None else model
    _, report = calibrate(model, batches, spec or request(), run=call, **options)
    return model, report


def call(model, batch):
    return model(batch)


def state(model):
    """All that the widths stand for."""
    return {name: module.solution() for name, module in model.named_modules()
            if hasattr(module, 'weight_quantizer')}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, solution in one.items():
        for a, b in zip((solution, *solution.narrower), (other[name], *other[name].narrower),
                        strict=True):
            assert torch.equal(a.codes, b.codes), name
            assert torch.equal(a.weight_scale, b.weight_scale), name
            assert torch.equal(a.bias, b.bias), name
        for a, b in zip(solution.narrower_inputs, other[name].narrower_inputs, strict=True):
            assert torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)


def test_each_width_is_solved_on_what_the_model_gives_at_that_width(batches, seeded, monkeypatch):
    seen = {}

    def spy(layer, plan, method, pairs, captures, *rest):
        seen[plan.name] = pairs, captures
        return solve(layer, plan, method, pairs, captures, *rest)

    solve = width_solver.solve_widths
    monkeypatch.setattr(width_solver, 'solve_widths', spy)
    model, report = calibrated(batches, seeded, call)
    assert seen.keys() == {'inner', 'down', *(f'head.towers.{tower}.{layer}' for tower in range(2)
                                              for layer in (0, 2))}
    modules = dict(model.named_modules())
    for number, bits in enumerate(WIDTHS):
        set_bits(model, bits)
        found = {name: [] for name in seen}
        hooks = [modules[name].register_forward_pre_hook(
            lambda layer, inputs, kept=kept: kept.append(inputs[0].clone()))
            for name, kept in found.items()]
        with torch.no_grad():
            for batch in batches:
                model(batch)
        for hook in hooks:
            hook.remove()
        for name, (pairs, captures) in seen.items():
            assert [(pair.weight, pair.input) for pair in pairs] == [(one, one) for one in WIDTHS]
            assert len(captures[number]) == len(found[name])
            for capture, x in zip(captures[number], found[name]):
                torch.testing.assert_close(capture.high, x.amax((0, 2, 3)), msg=name)
                torch.testing.assert_close(capture.low, x.amin((0, 2, 3)), msg=name)
    row = next(row for row in report.layers if row.name == 'inner')
    assert any('error at 3 bits' in note for note in row.notes)
    name = 'rounding' if row.guard_taken else 'solver'
    assert [(one['weight_bits'], one['activation_bits'], one['error'], one['error_rounding'])
            for one in row.width_errors] == [
        (bits, bits, row.candidates[f'{name}, {bits} bits'], row.candidates[
            f'rounding, {bits} bits']) for bits in WIDTHS]
    assert row.width_errors[-1]['error'] == row.error and row.width_errors[0]['error'] > row.error


def test_layers_of_one_width_are_solved_on_what_the_widest_gives(batches, seeded, monkeypatch):
    seen = {}

    def spy(layer, plan, method, captures, *rest, **options):
        seen[plan.name] = captures
        return solve(layer, plan, method, captures, *rest, **options)

    solve = layer_solver.solve_layer
    monkeypatch.setattr(layer_solver, 'solve_layer', spy)
    model, _ = calibrated(batches, seeded, call)
    assert set(seen) == {name for name, widths in widths_of(model).items()
                         if len(widths.weight) == 1}
    found = {name: [] for name in seen}
    modules = dict(model.named_modules())
    for name in seen:
        modules[name].register_forward_pre_hook(
            lambda layer, inputs, kept=found[name]: kept.append(inputs[0].clone()))
    set_bits(model, WIDTHS[-1])
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for name, captures in seen.items():
        assert len(captures) == len(found[name]) >= len(batches)
        for capture, x in zip(captures, found[name]):
            torch.testing.assert_close(capture.high, x.amax((0, 2, 3)), msg=name)


def test_codes_nest_inputs_are_multiples_and_other_layers_have_one_width(batches, seeded):
    model, _ = calibrated(batches, seeded, call)
    widths = widths_of(model)
    for name in ('stem', 'head.classify', 'head.regress'):
        assert len(widths[name].weight) == 1 if name in widths else True
    for solution in state(model).values():
        if not solution.narrower:
            continue
        assert [one.num_bits for one in solution.narrower] == [4, 3]
        for one in solution.narrower:
            assert torch.equal(one.codes, narrower_codes(solution.codes, 8, one.num_bits, 'floor'))
            torch.testing.assert_close(one.weight_offset, one.weight_scale / 2)
        assert [one.num_bits for one in solution.narrower_inputs] == [4, 3]
        for one in solution.narrower_inputs:
            factor = one.scale / solution.qparams.scale
            torch.testing.assert_close(factor, factor[:1].expand_as(factor))


@pytest.mark.parametrize('effort', ['fast', 'default'])
def test_scales_and_biases_are_those_that_a_file_gives_back(batches, seeded, effort):
    spec = read_request(dict(method=dict(type='NestedBitSplit', widths=WIDTHS, effort=effort),
                             calibration=dict(rows_per_layer=256)))
    model, report = calibrated(batches, seeded, call, spec)
    assert bool(report.tuning) == (effort == 'default')
    for solution in state(model).values():
        for one, stored in zip(solution.narrower, solution_as_stored(solution).narrower):
            assert torch.equal(one.weight_scale, stored.weight_scale)
            assert torch.equal(one.weight_offset, stored.weight_offset)
            assert torch.equal(one.bias, stored.bias)
    assert {(row['weight_bits'], row['input_bits']) for row in report.tuning} == (
        {(3, 3), (4, 4)} if effort == 'default' else set())


def test_outputs_come_nearer_with_every_width(batches, seeded):
    wanted = [out for batch in batches for level in seeded(Chain)(batch) for out in level]
    model, _ = calibrated(batches, seeded, call)
    errors = []
    with torch.no_grad():
        for bits in WIDTHS:
            set_bits(model, bits)
            errors.append(sum(float((a - b).square().sum()) for a, b in zip(wanted, (
                out for batch in batches for level in model(batch) for out in level))))
    assert errors[0] > errors[1] > 4 * errors[2]


@pytest.mark.parametrize('options', [
    dict(activation_widths=[8]), dict(activation_widths=[4, 8]), dict(branches=2),
    dict(branches='auto'),
    dict(nesting='planes', order='up')], ids=lambda value: ' '.join(value))
def test_options_make_models_of_their_widths(batches, seeded, options):
    model, _ = calibrated(batches, seeded, call, request(**options))
    inputs = tuple(options.get('activation_widths', WIDTHS))
    assert widths_of(model)['inner'].weight == tuple(WIDTHS)
    assert widths_of(model)['inner'].input == inputs
    for bits in WIDTHS:
        set_bits(model, weight=bits, activation=inputs[0])
        assert all(torch.isfinite(out).all() for level in model(batches[0]) for out in level)


def test_two_processes_give_what_one_gives(batches, seeded):
    alone, _ = calibrated(batches, seeded, call)
    models = [seeded(Chain) for _ in range(2)]  # not in threads: they share torch's generator

    def go(team):
        return calibrated([batches[number] for number in team.batches(len(batches))], seeded,
                          call, team=team, model=models[team.rank])[0]

    for model in together(2, go):
        assert_equal(state(model), state(alone))


def test_an_interrupted_calibration_ends_as_if_it_had_not_been(batches, seeded, tmp_path):
    whole, _ = calibrated(batches, seeded, call)

    class Interrupted(Exception):
        pass

    def stop(step):
        if step.stage == 'layers' and step.done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        calibrated(batches, seeded, call, progress=stop,
                   journal=Journal.open(tmp_path, {'a': 'b'}, resume=False))
    resumed, _ = calibrated(batches, seeded, call,
                            journal=Journal.open(tmp_path, {'a': 'b'}, resume=True))
    assert_equal(state(resumed), state(whole))


def test_a_layer_whose_width_is_said_elsewhere_keeps_it(batches, seeded):
    spec = read_request(dict(
        method=dict(type='NestedBitSplit', widths=WIDTHS, effort='fast'),
        overrides=[dict(match='inner', weight=dict(num_bits=5))],
        calibration=dict(rows_per_layer=256)))
    model, _ = calibrated(batches, seeded, call, spec)
    assert state(model)['inner'].num_bits == 5 and not state(model)['inner'].narrower
    assert len(state(model)['down'].narrower) == 2


def test_memory_counts_the_forwards_that_sleep(batches, seeded):
    one, several = (calibrated(copy.deepcopy(batches), seeded, call, request(
        branches=count))[1].estimated_bytes for count in (1, 'all'))
    assert several > one


def test_wide_widths_share_the_widest_branch():
    pairs = tuple(Prefix(bits, bits) for bits in (3, 4, 6, 7, 8))
    chosen = _prefixes(pairs, 'auto')
    assert [pair.weight for pair in chosen] == [3, 4, 8]
    found = WidthPairs(pairs, tuple(chosen))
    assert [found.prefix_of(pair) for pair in pairs] == [0, 1, 2, 2, 2]
