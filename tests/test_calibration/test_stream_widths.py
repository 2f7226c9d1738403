"""Residual streams in a model of several widths: rounded, and read, at the width in use."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate, width_solver
from mmbitsplit.cli.inspect_checkpoint import plan_of
from mmbitsplit.export import pack_checkpoint, summarise, unpack_state
from mmbitsplit.methods import read_request
from mmbitsplit.methods.unit_learning_widths import LearnedWidths
from mmbitsplit.methods.unit_problem import UnitProblem
from mmbitsplit.models import bits_of, describe, rebuild, set_bits, set_plan, widths_of
from mmbitsplit.models.layers.streams import round_stream, rounded_streams, stream_qparams

WIDTHS = [3, 4, 8]
NAMES = {'relu', 'blocks.0'}


class Sums(nn.Module):
    """A stem gives a tensor that a convolution and an addition read: the layer's own output."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        return self.last((self.inner(y) + y + x).relu())


def request(method=None, **more):
    method = dict(type='NestedBitSplit', widths=WIDTHS, effort='fast', branches='all',
                  **(method or {}))
    return read_request({**dict(
        method=method, activation=dict(placement='residual'),
        first_last=dict(weight_bits=None, activation_bits=None),
        calibration=dict(rows_per_layer=256)), **more})


@pytest.fixture
def go(residual_net, images, run_model):
    def go(model=None, **more):
        model = residual_net() if model is None else model
        return calibrate(model, images(4), request(**more), run=run_model)[0]
    return go


def outputs(model, batch):
    with torch.no_grad():
        found = model(batch)
    return found if isinstance(found, tuple) else (found,)


def assert_same(one, other, batch):
    for a, b in zip(outputs(one, batch), outputs(other, batch), strict=True):
        assert torch.equal(a, b)


def test_each_width_rounds_streams_and_their_readers_alike(go, images):
    prepared = go()
    model, widths = prepared.model, widths_of(prepared.model)
    assert {name: own.stream for name, own in widths.items() if own.stream} == dict.fromkeys(
        NAMES, tuple(WIDTHS))
    readers = {stream.name: stream.readers for stream in prepared.plan.streams}
    for bits in WIDTHS:
        set_bits(model, bits)
        for name, module in rounded_streams(model):
            stream = stream_qparams(module)
            assert stream.num_bits == bits and readers[name]
            for reader in readers[name]:
                mine = prepared.layers[reader].input_quantizer.qparams
                assert mine.num_bits == bits
                assert torch.equal(mine.scale, stream.scale)
                assert torch.equal(mine.zero_point, stream.zero_point)
        seen = []
        handle = model.blocks[1].register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].clone()))
        outputs(model, images(1)[0])
        handle.remove()
        assert 2 < len(seen[0].unique()) <= 2 ** bits


def test_at_a_width_it_is_the_model_whose_streams_have_that_width_alone(go, images):
    model = go().model
    for bits in WIDTHS:
        set_bits(model, bits)
        alone = copy.deepcopy(model)
        for _, module in list(rounded_streams(alone)):
            round_stream(module, stream_qparams(module))
        assert all(len(own.stream) < 2 for own in widths_of(alone).values())
        assert_same(model, alone, images(1)[0])


def test_layers_are_solved_on_streams_of_their_width(go, images, monkeypatch):
    seen, solve = {}, width_solver.solve_widths

    def spy(layer, plan, method, pairs, captures, *rest):
        seen[plan.name] = captures
        return solve(layer, plan, method, pairs, captures, *rest)

    monkeypatch.setattr(width_solver, 'solve_widths', spy)
    prepared = go()
    assert bits_of(prepared.model)['blocks.0'].stream == WIDTHS[-1]
    for number, bits in enumerate(WIDTHS):
        set_bits(prepared.model, bits)
        highs = []
        handle = prepared.layers['blocks.1.conv1'].register_forward_pre_hook(
            lambda layer, args, highs=highs: highs.append(args[0].amax((0, 2, 3))))
        for batch in images(4):
            outputs(prepared.model, batch)
        handle.remove()
        for capture, high in zip(seen['blocks.1.conv1'][number], highs, strict=True):
            torch.testing.assert_close(capture.high, high)


def test_units_are_learned_on_streams_of_each_width(residual_net, images, run_model, monkeypatch):
    seen, use = {}, LearnedWidths.use

    def used(learned, widths):
        use(learned, widths)
        problem, found = learned.problem, seen.setdefault(learned.problem.unit.name, {})
        index = problem.widths.index(widths)
        found[widths.activation] = (
            {stream_qparams(module).num_bits for name, module in inside(problem)},
            max(len(call.width_inputs[index].unique()) for call in problem.fit))

    def inside(problem):
        return [(name, module) for name, module in rounded_streams(model)
                if name in problem.unit.modules]

    def forward(problem, x):
        output = run(problem, x)
        if problem.unit.name == 'blocks.0' and not torch.is_grad_enabled():
            bits = stream_qparams(model.get_submodule('blocks.0')).num_bits
            given[bits] = max(given.get(bits, 0), len(output.unique()))
        return output

    given, run = {}, UnitProblem.forward
    monkeypatch.setattr(LearnedWidths, 'use', used)
    monkeypatch.setattr(UnitProblem, 'forward', forward)
    model = residual_net()
    prepared, _ = calibrate(model, images(4), read_request(dict(
        method=dict(type='PTMQ', widths=[3, 4, 6], iterations=4),
        activation=dict(placement='residual'), calibration=dict(rows_per_layer=256),
        first_last=dict(weight_bits=None, activation_bits=None))), run=run_model)
    assert {bits: own for bits, (own, _) in seen['blocks.0'].items()} == {
        bits: {bits} for bits in (3, 4, 6)}
    for bits in (3, 4, 6):  # what leaves the unit, and what the next one is learned on
        assert 2 < given[bits] <= 2 ** bits
        assert 2 < seen['blocks.1'][bits][1] <= 2 ** bits
    assert widths_of(model)['blocks.0'].stream == (3, 4, 6)
    readers = {stream.name: stream.readers for stream in prepared.plan.streams}
    for bits in (3, 4, 6):
        set_bits(model, bits)
        for name, module in rounded_streams(model):
            for reader in readers[name]:
                mine = prepared.layers[reader].input_quantizer.qparams
                assert mine.num_bits == bits
                torch.testing.assert_close(mine.scale, stream_qparams(module).scale)
        assert all(torch.isfinite(out).all() for out in outputs(model, images(1)[0]))


def test_files_and_plans_have_them(go, images, residual_net):
    prepared = go()
    packed = pack_checkpoint(prepared.model.state_dict(), describe(prepared), {})['state_dict']
    read, other = unpack_state(packed), residual_net()
    rebuild(other, read.description)
    other.load_state_dict(read.state)
    for bits in WIDTHS:
        for model in (prepared.model, other):
            set_bits(model, bits)
        assert_same(prepared.model, other, images(1)[0])
    summary = summarise(read, 1)
    assert {row['name']: row.get('stream_widths') for row in summary['streams']}[
        'blocks.0'] == WIDTHS
    set_bits(other, 3)
    set_plan(other, plan_of(summary))
    assert_same(prepared.model, other, images(1)[0])
    set_plan(other, dict(layers=[], streams=[dict(name='blocks.0', num_bits=4)]))
    assert bits_of(other)['blocks.0'].stream == 4 and bits_of(other)['relu'].stream == 8
    with pytest.raises(ValueError, match="stream of 'blocks.0' has 3, 4, 8 bits.* says 5"):
        set_plan(other, dict(layers=[], streams=[dict(name='blocks.0', num_bits=5)]))


def test_a_layers_own_output_is_a_stream_of_several_widths(go, images, seeded):
    prepared = go(seeded(Sums))
    for name in ('stem', 'conv'):
        assert widths_of(prepared.model)[name].output == tuple(WIDTHS)
    reader = prepared.layers['conv'].input_quantizer
    given = prepared.layers['stem'].output_quantizer
    for bits in WIDTHS:
        set_bits(prepared.model, bits)
        assert given.num_bits == reader.num_bits == bits
        assert torch.equal(given.qparams.scale, reader.qparams.scale)
        assert torch.equal(given.qparams.zero_point, reader.qparams.zero_point)


@pytest.mark.parametrize('more', [
    dict(plan=dict(layers=[], streams=[dict(name=name, num_bits=8) for name in sorted(NAMES)])),
    dict(activation=dict(placement='residual', num_bits=8))], ids=lambda more: next(iter(more)))
def test_streams_whose_width_is_said_elsewhere_keep_it(go, images, more):
    model = go(**more).model
    for name in NAMES:
        assert widths_of(model)[name].stream == (8,)
    inputs = (8,) if 'activation' in more else tuple(WIDTHS)
    assert widths_of(model)['blocks.1.conv1'].input == inputs
    set_bits(model, 3)
    assert all(torch.isfinite(one).all() for one in outputs(model, images(1)[0]))


def test_outputs_for_runtimes_keep_their_one_width(go, images):
    prepared = go(activation=dict(placement='deploy'))
    planned = {plan.name for plan in prepared.plan.layers if plan.output is not None}
    assert planned
    widths = widths_of(prepared.model)
    for name in planned:
        assert widths[name].output == (8,)
