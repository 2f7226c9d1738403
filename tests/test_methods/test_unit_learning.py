"""The loop of learned rounding: against brute force, on odd shapes, by importance."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unit_learning_cases import INNER, SCALE_FREE, chain, rounding_group, rows
from unit_methods import WATCHER, known  # noqa: F401

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.methods.unit_learning import Learned, Learning, learn, output_dim
from mmbitsplit.methods.unit_learning_optimizers import GroupOptimizer, ParameterGroup
from mmbitsplit.methods.unit_learning_state import FAR, harden, soften


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
                    method=dict(type='Watched', effort='fast'),
                    calibration=dict(holdout=0.25), **INNER)

        calibrate(chain(seed, *sizes), [rows(16, sizes[0], seed) for _ in range(3)],
                  read_request(spec), run=lambda model, batch: model(batch))
    finally:
        WATCHER.update(plain)
    assert seen


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


def learned_values(problem, kind, side='weight'):
    """What the quantizers of a unit's layers learn, by name."""
    quantizers = {name: getattr(layer, f'{side}_quantizer')
                  for name, layer in problem.layers.items()}
    return {f'{name}.{side}.{kind}': quantizer.learned()[kind]
            for name, quantizer in quantizers.items() if quantizer is not None}


def test_what_quantizers_learn_is_found_by_kind_and_learned_beside_roundings(solved, residual_net,
                                                                             images):
    def improve(problem):
        before = problem.solutions(), problem.error(problem.judge)
        group = rounding_group(problem, rate=0.01, reach=0.3)
        for layer in problem.layers.values():
            layer.weight_quantizer.learn(scale='log', bias=True)
            if layer.input_quantizer is not None:
                layer.input_quantizer.learn(scale='log', carrier=layer.weight_quantizer)
        scales, biases, inputs = (learned_values(problem, *kind) for kind in (
            ('scale',), ('bias',), ('scale', 'input')))
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
