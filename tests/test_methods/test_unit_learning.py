"""The loop of learned rounding: against brute force, broken off, on odd shapes."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyramids import Detector, LevelHead
from torch import nn
from unit_methods import WATCHER, known  # noqa: F401

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.methods.unit_learning import Learned, Learning, Push, learn, output_dim
from mmbitsplit.methods.unit_learning_draws import Draws
from mmbitsplit.methods.unit_learning_optimizers import GroupOptimizer, ParameterGroup
from mmbitsplit.methods.unit_learning_state import (
    FAR,
    decide,
    harden,
    learned_parameters,
    repair,
    roundings,
    soften,
    some_of,
)
from mmbitsplit.methods.unit_problem import Snapshots

INNER = dict(first_last=dict(weight_bits=None, activation_bits=None))


@pytest.fixture
def solved(make_spec, run_model, monkeypatch):
    """Calls a function with each unit of a model, solved; returns what it gave, by unit."""
    def solve(model, batches, do, bits=3, input_bits=4, holdout=0.25, **changes):
        given = {}

        def once(problem):
            given[problem.unit.name] = do(problem)
            return ()

        monkeypatch.setitem(WATCHER, 'solve', once)
        spec = make_spec(**{**INNER, 'weight': dict(num_bits=bits),
                            'activation': dict(num_bits=input_bits), **changes},
                         method=dict(type='Watched'), calibration=dict(holdout=holdout))
        calibrate(model, batches, spec, run=run_model)
        return given
    return solve


def rounding_group(problem, start='solver', rate=0.02, reach=1.0):
    return ParameterGroup(parameters=soften(problem, start, reach), learning_rate=rate)


def chain(seed, *sizes):
    torch.manual_seed(seed)
    layers = [nn.Linear(one, other) for one, other in zip(sizes, sizes[1:])]
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])


def rows(count=64, inputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x + 1.5 * torch.randn(count, 1, generator=generator)


SCALE_FREE = dict(loss='scale_free', push=Push(weight=1.0))


def test_it_finds_the_best_rounding_of_a_unit_or_comes_near(solved):
    """All roundings of two layers together are tried: what layer by layer cannot see."""
    def compare(problem):
        start = problem.error(problem.fit)
        soft = soften(problem)
        flat = torch.cat([v.detach().flatten() for v in soft.values()])
        sides = torch.tensor([-FAR, FAR])
        kept = [v.detach().clone() for v in soft.values()]
        choices = torch.cartesian_prod(*[sides] * len(flat))
        errors = []
        for choice in choices:
            set_flat(soft, choice)
            errors.append(problem.error(problem.fit))
        with torch.no_grad():
            for v, before in zip(soft.values(), kept):
                v.copy_(before)
        learned = learn(problem, Learning(
            groups=[ParameterGroup(parameters=soft, learning_rate=0.05)], steps=300,
            batch_size=64, extra_steps=100, judge_every=10, **SCALE_FREE))
        harden(problem)
        assert learned.figures['best_error'] == pytest.approx(problem.error(problem.judge))
        return start, problem.error(problem.fit), min(errors)

    gain = left = 0.0
    for seed in range(2, 6):
        (errors,) = solved(chain(seed, 3, 2, 1), [rows(seed=seed)], compare, input_bits=None,
                           holdout=0.0).values()
        start, found, least = errors
        assert least <= found * (1 + 1e-6) and found <= start
        gain, left = gain + start / least - 1, left + found / least - 1
    assert gain > 1 and left < 0.3 * gain, (gain, left)


def set_flat(soft, values):
    first = 0
    with torch.no_grad():
        for v in soft.values():
            v.copy_(values[first:first + v.numel()].view(v.shape))
            first += v.numel()


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), bits=st.sampled_from([2, 4]),
       seed=st.integers(0, 99))
def test_without_steps_the_codes_are_the_solvers_bit_for_bit(sizes, bits, seed):
    def nothing_learned(problem):
        before = problem.solutions()
        learn(problem, Learning(groups=[rounding_group(problem)], steps=0, batch_size=4))
        harden(problem)
        for name, after in problem.solutions().items():
            assert torch.equal(after.codes, before[name].codes)
            assert torch.equal(after.weight_scale, before[name].weight_scale)
        seen.append(problem.unit)
        return ()

    seen, plain = [], dict(WATCHER)
    WATCHER['solve'] = nothing_learned
    try:
        spec = dict(weight=dict(num_bits=bits), activation=dict(num_bits=4),
                    method=dict(type='Watched'), calibration=dict(holdout=0.25), **INNER)

        calibrate(chain(seed, *sizes), [rows(16, sizes[0], seed) for _ in range(3)],
                  read_request(spec), run=lambda model, batch: model(batch))
    finally:
        WATCHER.update(plain)
    assert seen


def test_codes_around_the_float_weight_are_those_below_and_above(solved, residual_net, images):
    def compare(problem):
        for layer in problem.layers.values():
            layer.install(replace(layer.solution(), weight_scale=layer.solution().weight_scale * 3))
        soften(problem, 'nearest')
        for layer in problem.layers.values():
            quantizer = layer.weight_quantizer
            scale = quantizer.scale.view(-1, *[1] * (layer.weight.dim() - 1))
            inputs = layer.solution().qparams
            carried = inputs.scale if inputs is not None and inputs.unit else 1.0
            float_codes = layer.weight * carried / scale
            inside = float_codes.abs() <= 3
            assert (quantizer.base == float_codes.floor())[inside].all()
            soft = quantizer.soft_codes().detach()
            torch.testing.assert_close(soft[inside], float_codes[inside], rtol=0, atol=1e-4)
        return problem.unit

    assert solved(residual_net(), images(), compare, activation=dict(
        num_bits=4, mode='per_tensor'))


def test_after_a_schedule_that_is_too_short_it_goes_on_until_all_but_a_few_are_decided(
        solved, residual_net, images):
    def both(problem):
        found = []
        for extra in (0, 60):
            start = problem.solutions()
            learned = learn(problem, Learning(
                groups=[rounding_group(problem, rate=0.01)], steps=30, batch_size=4,
                extra_steps=extra, **SCALE_FREE))
            harden(problem)
            for name, layer in problem.layers.items():
                layer.install(start[name])
            found.append(learned)
        return found

    for short, long in solved(residual_net(), images(), both).values():
        assert short.figures['undecided'] > 0.1 and short.figures['steps'] == 30
        assert long.figures['undecided'] <= 1e-3
        assert 0 < long.figures['extra_steps'] <= 60
        assert long.figures['hard_error'] == pytest.approx(long.figures['soft_error'], rel=0.05)
        assert 'iterations and' in long.notes[0] and '% of the roundings' in long.notes[0]


def test_deciding_takes_the_nearest_half_for_good():
    """Of five that are undecided, the three that are nearest to 0 or 1; 5 is decided."""
    v = torch.tensor([0.1, -1.0, 2.0, -2.2, 5.0, 0.0], requires_grad=True)
    decide({'v': v})
    assert v.tolist() == [pytest.approx(0.1), -FAR, FAR, -FAR, 5.0, 0.0]


@pytest.mark.parametrize('reach', [0.0, 0.3])
def test_soft_codes_can_begin_near_the_whole_ones(reach, solved, residual_net, images):
    def compare(problem):
        before = problem.solutions()
        for name, layer in problem.layers.items():
            quantizer, codes = layer.weight_quantizer, before[name].codes
            soften(problem)
            away = (quantizer.soft_codes() - codes).abs().detach()
            harden(problem)
            soften(problem, reach=reach)
            torch.testing.assert_close((quantizer.soft_codes() - codes).abs().detach(),
                                       reach * away, rtol=0, atol=1e-5)
            harden(problem)
            assert torch.equal(layer.solution().codes, codes)
        return problem.unit

    assert solved(residual_net(), images(), compare)


class Broken(BaseException):
    """Stands in for ``kill -9``."""


class Memory(Snapshots):
    """Keeps each state, and breaks off after some of them."""

    def __init__(self, most=None):
        self.state, self.most, self.saved = None, most, 0

    def load(self):
        return self.state

    def due(self):
        return True

    def save(self, state):
        self.state, self.saved = state, self.saved + 1
        if self.saved == self.most:
            raise Broken


def in_two_stages(problem):
    """Roundings by Adam, judged and decided to the end; then scales by signs, with random inputs.
    """
    def feed(draw, generator):
        keep = torch.rand(draw.float_input.shape, generator=generator) < 0.5
        return torch.where(keep, draw.quantized_input, draw.float_input)

    first = learn(problem, Learning(
        groups=[rounding_group(problem)], steps=6, batch_size=3, judge_every=2, extra_steps=10,
        steps_after=5, **SCALE_FREE))
    harden(problem)
    scales = {name: layer.weight_quantizer.scale.requires_grad_()
              for name, layer in problem.layers.items()}
    second = learn(problem, Learning(
        groups=[ParameterGroup(parameters=scales, learning_rate=1e-3, optimizer='sign_sgd',
                               schedule='linear', low=1e-6)],
        stage='scales', steps=5, batch_size=2, feed=feed, steps_before=6), first)
    for scale in scales.values():
        scale.requires_grad_(False)
    return problem.solutions(), {**first.figures, 'second': second.figures}


@pytest.mark.parametrize('most', [1, 5, 8, 16, 17, 20])
def test_broken_off_at_any_step_it_ends_alike(most, solved, residual_net, images):
    def compare(problem):
        start, told = problem.solutions(), []
        problem = replace(problem, progress=lambda step, steps: told.append((step, steps)))
        whole = in_two_stages(problem)
        assert told == sorted(told) and told[-1] == (11, 11) and {of for _, of in told} == {11}

        def again(snapshots):
            for name, layer in problem.layers.items():
                layer.install(start[name])
            return in_two_stages(replace(problem, snapshots=snapshots))

        snapshots = Memory(most)
        try:
            again(snapshots)
        except Broken:
            pass
        else:  # a unit decided early has fewer steps
            return False
        return equal(again(snapshots), whole)

    found = solved(residual_net(), images(), compare)
    assert any(found.values())


def equal(one, other):
    assert one[1] == other[1]
    for name, solution in one[0].items():
        assert torch.equal(solution.codes, other[0][name].codes)
        assert torch.equal(solution.weight_scale, other[0][name].weight_scale)
    return True


def test_the_same_seed_gives_the_same_and_another_one_does_not(solved, residual_net, images):
    def thrice(problem):
        start, found = problem.solutions(), []
        for seed in (0, 0, 1):
            for name, layer in problem.layers.items():
                layer.install(start[name])
            learn(problem=replace(problem, seed=seed), what=Learning(
                groups=[rounding_group(problem)], steps=5, batch_size=2))
            found.append(torch.cat([v.detach().flatten() for v in roundings(problem).values()]))
        assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
        return problem.unit

    assert solved(residual_net(), images(), thrice)


def test_each_level_of_a_shared_head_is_heard(solved, seeded, images):
    """Levels of one shape are levels all the same; a level of small outputs counts like others."""
    def look(problem):
        each = Draws(problem.fit, 2, levels='each')
        mixed = Draws(problem.fit, 2)
        numbers = {call.number for call in problem.fit}
        generator = problem.generator(0)
        assert [len(draw.float_output) for draw in each(generator)] == [2] * len(numbers)
        assert len(mixed(generator)) == 1
        if len(numbers) == 1:
            return 1
        small = tuple(replace(call, float_output=call.float_output * 1e-3) if call.number == 2
                      else call for call in problem.fit)
        scaled = replace(problem, fit=small)
        soft = soften(problem)
        group = [ParameterGroup(parameters=soft, learning_rate=0.01)]
        gradients = []
        for part in (small, [call for call in small if call.number == 2]):
            before = {name: v.detach().clone() for name, v in soft.items()}
            learn(replace(scaled, fit=tuple(part)), Learning(
                groups=group, steps=1, batch_size=64, levels='each', loss='scale_free'))
            gradients.append(torch.cat([v.grad.flatten() for v in soft.values()]))
            with torch.no_grad():
                for name, v in soft.items():
                    v.copy_(before[name])
        share = float((gradients[0] @ gradients[1]) / gradients[1].square().sum())
        assert share > 0.2  # a third of the loss, in its own units
        return len(numbers)

    found = solved(seeded(lambda: Detector(LevelHead())), images(4, size=16), look)
    assert 3 in found.values()


def test_calls_that_are_joined_first_give_the_same_draws(solved, seeded, images):
    def look(problem):
        for levels in ('mixed', 'each'):
            apart, joined = (Draws(problem.fit, 3, levels=levels, float_inputs=True, joined=joined)
                             for joined in (False, True))
            for step in range(3):
                for one, other in zip(apart(problem.generator(step)),
                                      joined(problem.generator(step)), strict=True):
                    for name in ('quantized_input', 'float_input', 'float_output'):
                        assert torch.equal(getattr(one, name), getattr(other, name))
        return True

    assert solved(seeded(lambda: Detector(LevelHead())), [*images(3, size=16), *images(2)], look)


def test_hooks_are_given_the_steps_own_random_numbers(solved, residual_net, images):
    def look(problem):
        seen = []

        def feed(draw, generator):
            assert draw.float_input.shape == draw.quantized_input.shape
            seen.append(float(torch.rand((), generator=generator)))
            return draw.float_input

        @contextmanager
        def inside(generator):
            seen.append(float(torch.rand((), generator=generator)))
            yield

        for _ in range(2):
            learn(problem, Learning(groups=[rounding_group(problem)], steps=2, batch_size=2,
                                    feed=feed, inside=inside))
        assert seen[:4] == seen[4:] and len(set(seen)) == 4
        return problem.unit

    assert solved(residual_net(), images(), look)


def test_the_best_codes_on_held_out_images_are_kept_the_start_among_them(solved, residual_net,
                                                                         images):
    def spoil(problem):
        start, error = problem.solutions(), problem.error(problem.judge)
        learned = learn(problem, Learning(
            groups=[rounding_group(problem, rate=5.0)], steps=8, batch_size=1, judge_every=1))
        harden(problem)
        assert problem.error(problem.judge) <= error
        assert learned.figures['best_error'] == pytest.approx(problem.error(problem.judge))
        assert learned.figures['hard_error'] >= learned.figures['best_error']
        same = all(torch.equal(solution.codes, start[name].codes)
                   for name, solution in problem.solutions().items())
        assert same == (learned.figures['best_step'] == 0)
        return same

    found = solved(residual_net(), images(), spoil)
    assert any(found.values())


def test_a_layer_that_hardened_badly_is_given_its_start_back(solved, residual_net, images):
    def spoil(problem):
        start = problem.solutions()
        name, *others = problem.layers
        spoilt = start[name].codes.flip(0)
        problem.layers[name].install(replace(start[name], codes=spoilt))
        before = {other: problem.layers[other].solution() for other in others}
        given_back = repair(problem, start)
        if torch.equal(spoilt, start[name].codes):
            return False
        assert given_back == (name,)
        assert torch.equal(problem.layers[name].solution().codes, start[name].codes)
        for other in others:
            assert torch.equal(problem.layers[other].solution().codes, before[other].codes)
        return repair(problem, start) == ()

    assert any(solved(residual_net(), images(), spoil).values())


class Named:
    """A layer whose solution is a word."""

    def __init__(self):
        self.now = 'learned'

    def solution(self):
        return self.now

    def install(self, solution):
        self.now = solution


@pytest.mark.parametrize(('errors', 'wanted'), [
    ({'ll': 2, 'sl': 3, 'ls': 3, 'ss': 1}, 'ab'),  # worse than all of the start
    ({'ll': 2, 'sl': 3, 'ls': 1, 'ss': 1.5}, 'b'), ({'ll': 2, 'sl': 1, 'ls': 1.5, 'ss': 0.5}, 'ab'),
    ({'ll': 1, 'sl': 2, 'ls': 2, 'ss': 1}, '')])
def test_layers_are_given_back_as_long_as_that_helps_and_never_end_above_the_start(errors, wanted):
    class Problem:
        layers, fit = {'a': Named(), 'b': Named()}, ()

        def solutions(self):
            return {name: layer.now for name, layer in self.layers.items()}

        def error(self, calls):
            return errors[''.join(layer.now[0] for layer in self.layers.values())]

    problem = Problem()
    assert ''.join(sorted(repair(problem, dict(a='start', b='start')))) == wanted
    assert problem.solutions() == {name: 'start' if name in wanted else 'learned'
                                   for name in 'ab'}


def test_some_calls_are_of_about_as_many_images_as_asked_for(solved, residual_net, images):
    def look(problem):
        found = some_of(problem.fit, 3)
        assert 2 <= sum(len(call.float_output) for call in found) <= 6
        assert some_of(problem.fit, 99) == list(problem.fit)
        assert len(some_of(problem.fit[:1], 1)) == 1
        return True

    assert solved(residual_net(), images(8), look)


class Turned(nn.Module):
    """Attention-like: tokens from maps, heads, products, maps again."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 8, 1), nn.ModuleDict(
            dict(qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)))
        self.end = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.embed(x)
        b, c, h, w = x.shape
        q, k, v = self.mix['qkv'](x.flatten(2).transpose(1, 2)).view(b, h * w, 3, 2, 4).unbind(2)
        weight = torch.softmax(torch.einsum('bihd,bjhd->bhij', q, k) / 2, -1)
        x = self.mix['out'](torch.einsum('bhij,bjhd->bihd', weight, v).flatten(2))
        return self.end(x.transpose(1, 2).view(b, c, h, w))


class Around(nn.Module):
    """A stem, a module to be one unit, and an end."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.end = nn.Conv2d(3, 3, 1), Turned(), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.end(self.body(self.stem(x)))


def test_a_unit_that_turns_its_tensors_and_is_called_on_two_sizes_is_learned(solved, seeded,
                                                                             images):
    def improve(problem):
        learned = learn(problem, Learning(
            groups=[rounding_group(problem, rate=0.02)], steps=60, batch_size=4, judge_every=10,
            extra_steps=40, **SCALE_FREE))
        return len(problem.layers), learned

    batches = [*images(4, size=4), *images(4, size=6)]
    found = solved(seeded(Around), batches, improve,
                   overrides=[dict(match='body', unit='module')])
    layers, learned = found['body']
    assert layers == 4 and learned.figures['best_error'] < 0.5
    assert learned.figures['undecided'] <= 1e-3


@pytest.mark.parametrize(('kind', 'channels', 'shape', 'wanted'), [
    ('linear', 5, (2, 7, 5), -1), ('linear', 5, (2, 5, 4, 4), -3), ('conv2d', 5, (2, 5, 4, 4), -3),
    ('conv2d', 5, (2, 5), -1), ('conv2d', 5, (2, 16, 5), -1), ('linear', 5, (5, 3), -1),
    ('conv2d', 4, (2, 4, 4, 4), -3)])
def test_channels_are_found_where_a_unit_turns_its_outputs(kind, channels, shape, wanted):
    class Layer:
        class geometry:
            pass
    Layer.geometry.kind, Layer.geometry.out_channels = kind, channels
    problem = type('Problem', (), dict(layers={'layer': Layer}))
    assert output_dim(problem, torch.empty(shape)) == wanted


def test_a_channel_of_no_importance_is_not_fitted_and_weights_are_in_parts_of_their_mean(solved):
    def gradients(problem):
        found = []
        for importance in (None, torch.tensor([0.3, 0.0])):
            soft = soften(problem)
            learn(replace(problem, importance=importance), Learning(
                groups=[ParameterGroup(parameters=soft, learning_rate=0.0)], steps=1,
                batch_size=64, weighted=importance is not None))
            found.append([*soft.values()][-1].grad.clone())
            harden(problem)
        return found

    (found,) = solved(chain(0, 6, 4, 2), [rows(inputs=6)], gradients, bits=2, input_bits=None,
                      holdout=0.0).values()
    plain, weighted = found
    assert (plain.abs().sum(1) > 0).all()
    assert (weighted[1] == 0).all()
    torch.testing.assert_close(weighted[0], 2 * plain[0])


def test_importance_that_is_not_there_is_an_error(solved, residual_net, images):
    def refused(problem):
        for importance, message in ((None, "importance='none'"), (torch.ones(99), r'\(99,\)')):
            with pytest.raises(ValueError, match=message):
                learn(replace(problem, importance=importance), Learning(
                    groups=[], steps=0, batch_size=1, weighted=True))
        return problem.unit

    assert solved(residual_net(), images(), refused)


def test_steps_by_signs_follow_their_schedule_and_stop_at_the_least_value():
    one = torch.tensor([1.0, 0.05]).requires_grad_()
    optimizer = GroupOptimizer(ParameterGroup(parameters={'one': one}, learning_rate=0.1,
                                              optimizer='sign_sgd', schedule='linear', low=0.01))
    seen = []
    for step in range(3):
        one.grad = torch.tensor([-7.0, 3.0])
        optimizer.step(step, 2)
        seen.append(one.tolist())
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(
        [[1.1, 0.01], [1.15, 0.01], [1.16, 0.01]]))  # a tenth of the rate after the schedule


def test_what_quantizers_learn_is_found_by_kind_and_learned_beside_roundings(solved, residual_net,
                                                                             images):
    def improve(problem):
        before = problem.solutions(), problem.error(problem.judge)
        group = rounding_group(problem, rate=0.01, reach=0.3)
        for layer in problem.layers.values():
            layer.weight_quantizer.learn(scale='log', bias=True)
            if layer.input_quantizer is not None:
                layer.input_quantizer.learn(scale='log', carrier=layer.weight_quantizer)
        scales, biases, inputs = (learned_parameters(problem, *kind) for kind in (
            ('scale',), ('bias',), ('scale', True)))
        assert len(scales) == len(biases) == len(problem.layers)
        assert len(inputs) == sum(layer.input_quantizer is not None
                                  for layer in problem.layers.values())
        learn(problem, Learning(
            groups=[group, *(ParameterGroup(parameters=one, learning_rate=2e-3, schedule='cosine')
                             for one in (scales, biases, inputs))],
            steps=40, batch_size=4, judge_every=10, extra_steps=20, **SCALE_FREE))
        harden(problem)
        assert problem.error(problem.judge) <= before[1]
        return any(not torch.equal(solution.weight_scale, before[0][name].weight_scale)
                   for name, solution in problem.solutions().items())

    assert any(solved(residual_net(), images(8), improve).values())


def test_nothing_soft_has_nothing_to_say():
    assert Learned().notes == ()
