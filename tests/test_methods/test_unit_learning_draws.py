"""What each step of learned rounding is given: images, levels, random numbers."""

from contextlib import contextmanager
from dataclasses import replace

import torch
from pyramids import Detector, LevelHead
from unit_learning_cases import rounding_group
from unit_methods import known  # noqa: F401

from mmbitsplit.methods.unit_learning import Learning, learn
from mmbitsplit.methods.unit_learning_draws import Draws
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import soften, some_of


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


def test_some_calls_are_of_about_as_many_images_as_asked_for(solved, residual_net, images):
    def look(problem):
        found = some_of(problem.fit, 3)
        assert 2 <= sum(len(call.float_output) for call in found) <= 6
        assert some_of(problem.fit, 99) == list(problem.fit)
        assert len(some_of(problem.fit[:1], 1)) == 1
        return True

    assert solved(residual_net(), images(8), look)
