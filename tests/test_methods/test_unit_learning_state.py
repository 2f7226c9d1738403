"""Soft codes: where they begin, how they are decided, layers that are given back."""

from dataclasses import replace

import pytest
import torch
from unit_methods import known  # noqa: F401

from mmbitsplit.methods.unit_learning_state import FAR, decide, harden, repair, soften


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
