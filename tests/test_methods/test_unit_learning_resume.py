"""Learned rounding that is broken off at any step, and goes on."""

from dataclasses import replace

import pytest
import torch
from unit_learning_cases import SCALE_FREE, rounding_group
from unit_methods import known  # noqa: F401

from mmbitsplit.methods.unit_learning import Learning, learn
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import harden, roundings
from mmbitsplit.methods.unit_problem import Snapshots


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
