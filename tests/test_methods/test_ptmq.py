"""PTMQ: one rounding for all widths, learned on features of several widths."""

from dataclasses import replace

import pytest
import torch
from pyramids import Detector, LevelHead
from thread_team import together

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.methods import PTMQ, ptmq
from mmbitsplit.methods.unit_learning_draws import Draws
from mmbitsplit.methods.unit_learning_widths import LearnedWidths, default_groups, one_width
from mmbitsplit.methods.unit_problem import Snapshots
from mmbitsplit.passes.width_inputs import WidthInputs
from mmbitsplit.structures import Widths

LEAST = dict(widths=[3, 4, 6, 8], iterations=2, batch_size=4)
BLOCKS = ('blocks.0', 'blocks.1')


def request(changes=None, **options):
    return read_request({
        'scope': 'blocks', 'calibration': dict(rows_per_layer=64, holdout=0.25),
        'method': dict(type='PTMQ', **LEAST | options), **(changes or {})})


@pytest.fixture
def problems(monkeypatch):
    """Calls ``look(problem)`` with each unit before it is learned; gives the candidates by unit."""
    solve = PTMQ.solve_unit

    def watch(look=lambda problem: None):
        given = {}

        def watched(self, problem):
            look(problem)
            for candidate in solve(self, problem):
                given[problem.unit.name] = candidate
                yield candidate

        monkeypatch.setattr(PTMQ, 'solve_unit', watched)
        return given
    return watch


def test_all_widths_of_a_layer_have_one_rounding_and_scales_of_their_own(
        residual_net, images, run_model, problems):
    """Eq. 3, from what the run gives: codes are floor plus the same R wherever nothing is
    clipped, at scales that stay; inputs have a scale a width."""
    seen = {}

    def look(problem):
        for name, layer in problem.layers.items():
            seen[name] = layer.weight, layer.solution()

    candidates = problems(look)
    calibrate(residual_net(), images(), request(iterations=6, learning_rate=0.5, fallback=False),
              run=run_model)
    for unit in BLOCKS:
        for name, solution in candidates[unit].solutions.items():
            weight, start = seen[name]
            ups = []
            for widths in (Widths(bits, bits) for bits in (3, 4, 6, 8)):
                one, before = one_width(solution, widths), one_width(start, widths)
                assert (one.num_bits, one.qparams.num_bits) == widths
                scale = before.weight_scale / before.qparams.scale
                torch.testing.assert_close(one.weight_scale / one.qparams.scale, scale)
                place = weight / scale.view(-1, 1, 1, 1)
                floor = torch.floor(place)
                low, high = -2 ** (widths.weight - 1), 2 ** (widths.weight - 1) - 1
                clear = (place - place.round()).abs() > 1e-4  # whatever the last bit is
                inside = (floor >= low) & (floor < high) & clear
                ups.append(torch.where(inside, one.codes - floor, -1.0))
            stacked = torch.stack(ups)
            assert {*stacked.unique().tolist()} <= {-1.0, 0.0, 1.0}
            most = stacked.max(0).values
            assert bool(((stacked == most) | (stacked == -1)).all())
            assert len({one.num_bits for one in solution.narrower_inputs}) == 3


def test_without_iterations_the_lowest_width_is_plain_rounding(residual_net, images, run_model,
                                                               problems):
    start = {}
    candidates = problems(lambda problem: start.update(problem.solutions()))
    calibrate(residual_net(), images(), request(iterations=0), run=run_model)
    for unit in BLOCKS:
        for name, solution in candidates[unit].solutions.items():
            one, before = (one_width(item, Widths(3, 3)) for item in (solution, start[name]))
            # The full range has one code more; nothing else differs.
            assert torch.equal(one.codes.clamp(min=-3), before.codes)
            torch.testing.assert_close(one.weight_scale, before.weight_scale)


def test_units_get_what_the_model_gives_them_at_each_width(residual_net, images, run_model,
                                                           problems):
    """Inputs of the second block against the solved model switched by hand, skip connection and
    all; and at the widest they are those of the lockstep itself."""
    seen = {}
    problems(lambda problem: seen.update({problem.unit.name: problem}))
    batches = images()
    prepared, _ = calibrate(residual_net(), batches, request(), run=run_model)
    given = {}
    prepared.model.blocks[1].register_forward_pre_hook(
        lambda module, args: given.update(x=args[0].clone()))
    calls = seen['blocks.1'].fit
    for index, widths in enumerate(seen['blocks.1'].widths):
        for layer in prepared.layers.values():
            layer.use(weight=widths.weight, input=widths.activation)
        with torch.no_grad():
            run_model(prepared.model, batches[calls[0].batch])
        found = calls[0].width_inputs[index]
        torch.testing.assert_close(found, given['x'][:len(found)])
    assert torch.equal(calls[0].width_inputs[-1], calls[0].quantized_input)
    assert not torch.equal(calls[0].width_inputs[0], calls[0].quantized_input)


def test_a_layer_with_a_width_of_its_own_keeps_it(residual_net, images, run_model):
    prepared, report = calibrate(residual_net(), images(), read_request({
        'calibration': dict(rows_per_layer=64, holdout=0.25),
        'method': dict(type='PTMQ', **LEAST | dict(iterations=0)),
        'overrides': [dict(match='blocks.0.conv2', weight=dict(num_bits=5))]}), run=run_model)
    widths = {name: ({*layer.weight_quantizer.widths}, layer.input_quantizer
                     and {*layer.input_quantizer.widths})
              for name, layer in prepared.layers.items()}
    assert widths['stem'] == ({8}, None)
    assert widths['classify'] == ({8}, {8})
    assert widths['blocks.0.conv2'] == ({5}, {3, 4, 6, 8})
    assert widths['blocks.1.conv1'] == ({3, 4, 6, 8}, {3, 4, 6, 8})
    rows = {row.name: row for row in report.layers}
    assert not rows['stem'].width_errors and not rows['classify'].width_errors
    found = rows['blocks.1.conv1']
    assert [(one['weight_bits'], one['activation_bits'], one['of']) for one in
            found.width_errors] == [(bits, bits, 'unit') for bits in (3, 4, 6, 8)]
    assert sum(one['error'] for one in found.width_errors) / 4 == pytest.approx(
        found.unit_errors[found.unit_taken])
    assert found.width_errors[0]['error'] > found.width_errors[-1]['error']


class Broken(BaseException):
    """Stands in for ``kill -9``."""


class Memory(Snapshots):
    """Keeps each state, and breaks off after some of them."""

    def __init__(self, most):
        self.state, self.left = None, most

    def load(self):
        return self.state

    def due(self):
        return True

    def save(self, state):
        self.state, self.left = state, self.left - 1
        if self.left == 0:
            raise Broken


@pytest.mark.parametrize(('strategy', 'most'), [('mixed', 2), ('low_to_high', 4)])
def test_a_unit_that_is_broken_off_goes_on_to_the_same(strategy, most, residual_net, images,
                                                       run_model, monkeypatch):
    asked = request(iterations=3, strategy=strategy, learning_rate=0.05, fallback=False)
    whole, _ = calibrate(residual_net(), images(), asked, run=run_model)
    solve = PTMQ.solve_unit

    def broken_off(self, problem):
        before, kept = problem.solutions(), Memory(most)
        problem = replace(problem, snapshots=kept)
        with pytest.raises(Broken):
            list(solve(self, problem))
        for name, layer in problem.layers.items():
            layer.install(before[name])
        yield from solve(self, problem)

    monkeypatch.setattr(PTMQ, 'solve_unit', broken_off)
    again, _ = calibrate(residual_net(), images(), asked, run=run_model)
    assert_same(whole, again)


def test_several_processes_learn_what_one_does(residual_net, images, run_model):
    batches, asked = images(4), request(learning_rate=0.05, fallback=False)
    one, _ = calibrate(residual_net(), batches, asked, run=run_model)
    nets = [residual_net() for _ in range(2)]  # not in threads: they share torch's generator
    two = together(2, lambda team: calibrate(
        nets[team.rank], [batches[number] for number in team.batches(4)], asked, run=run_model,
        team=team)[0])
    for prepared in two:
        assert_same(one, prepared)


def assert_same(one, other):
    """Two prepared models have the same codes and scales at all widths."""
    for name, layer in one.layers.items():
        ours, theirs = layer.solution(), other.layers[name].solution()
        for widths in (Widths(bits, bits) for bits in (3, 4, 6, 8)):
            first, second = one_width(ours, widths), one_width(theirs, widths)
            assert torch.equal(first.codes, second.codes)
            assert torch.equal(first.weight_scale, second.weight_scale)


@pytest.mark.parametrize('strategy', ['direct', 'low_to_high', 'high_to_low'])
def test_what_it_is_compared_with_learns_at_one_width_after_another(
        strategy, residual_net, images, run_model, problems, monkeypatch):
    order, learn = [], PTMQ._of_one

    def watched(self, index, *args):
        order.append(self.widths[index])
        return learn(self, index, *args)

    monkeypatch.setattr(PTMQ, '_of_one', watched)
    _, report = calibrate(residual_net(), images(), request(
        iterations=1, strategy=strategy, fallback=False), run=run_model)
    wanted = {'direct': [3], 'low_to_high': [3, 4, 6, 8], 'high_to_low': [8, 6, 4, 3]}[strategy]
    assert order == wanted * 2
    assert {layer.unit_taken for layer in report.layers} == {'learned rounding'}


@pytest.mark.parametrize(('widths', 'groups'), [
    ((3, 4, 6, 8), ((3, 4), (6,), (8,))), ((2, 3, 4, 5, 6, 7, 8), ((2, 3, 4), (5, 6), (7, 8))),
    ((3, 4, 5), ((3,), (4,), (5,))), ((2, 3, 4, 5), ((2, 3), (4,), (5,))),
    ((4, 8), ((4,), (8,), (8,)))])
def test_groups_are_the_papers_or_thirds(widths, groups):
    assert default_groups(widths) == groups


@pytest.mark.parametrize(('activation', 'options', 'pairs'), [
    ({}, {}, [(3, 3), (4, 4), (6, 6), (8, 8)]),
    (dict(num_bits=8), {}, [(3, 8), (4, 8), (6, 8), (8, 8)]),
    ({}, dict(widths=[4, 5, 6, 7, 8], activation_widths=[6, 7, 8]),
     [(4, 6), (5, 6), (6, 6), (7, 7), (8, 8)]),
    (dict(num_bits=None), {}, [(3, None), (4, None), (6, None), (8, None)])])
def test_weights_are_learned_with_the_nearest_inputs_that_are_no_narrower(activation, options,
                                                                         pairs):
    spec = request({'activation': activation}, **options)
    method = PTMQ(**{name: value for name, value in spec.method.items() if name != 'type'})
    assert [tuple(one) for one in method.width_pairs(spec)] == pairs


@pytest.mark.parametrize(('options', 'word'), [
    (dict(widths=[4]), 'widths'), (dict(groups=[[3], [4], [6]]), 'groups'),
    (dict(lambdas=[0, 0, 0]), 'lambdas'), (dict(mixer='case2', lambdas=[1, 0, 0]), 'lambdas'),
    (dict(gammas=[1, 2]), 'gammas'), (dict(direct_bits=3), 'direct_bits'),
    (dict(activation_widths=[]), 'activation_widths')])
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        request(**options)


def test_a_shared_head_is_given_its_levels_at_each_width(images, run_model, problems, monkeypatch):
    """Run again at the widest width too, the inputs of all units are those of the lockstep."""
    of, seen = WidthInputs.of, []

    def with_widest(self, evidence, inputs):
        again = of(replace(self, widths=[*self.widths, self.widths[-1]]), evidence, inputs)
        for batch, calls in again[-1].items() if again else ():
            parts = [evidence.part(batch, number, x) for number, x in enumerate(inputs[batch])]
            seen.append((evidence.function.unit.name, len(calls)))
            for ours, theirs in zip(calls, parts, strict=True):
                torch.testing.assert_close(ours, theirs)
        return again[:-1]

    monkeypatch.setattr(WidthInputs, 'of', with_widest)
    torch.manual_seed(0)
    calibrate(Detector(LevelHead()).eval(), images(), request({'scope': 'all'}), run=run_model)
    assert {count for _, count in seen} == {1, 3}, seen


def quantized(x, qparams):
    """What a layer is given of its input: codes times scale; gradients pass within the range."""
    codes = torch.clamp(x / qparams.scale + qparams.zero_point, qparams.quant_min,
                        qparams.quant_max)
    codes = codes + (codes.round() - codes).detach()
    return (codes - qparams.zero_point) * qparams.scale


def by_hand(layers, rounding, widths, x):
    """A residual block, or a layer as others read it, at a pair of widths by the paper's Eq. 3,
    with soft roundings; the layers have that pair."""
    def conv(name, x):
        layer, start = layers[name]
        one = one_width(start, widths)
        scale = (one.weight_scale / one.qparams.scale).view(-1, 1, 1, 1)
        up = (1.2 * torch.sigmoid(rounding[f'{name}.rounding']) - 0.1).clamp(0, 1)
        low, high = -2 ** (widths.weight - 1), 2 ** (widths.weight - 1) - 1
        place = layer.weight / scale  # whole where it ends a range: up to the last bit
        floor = torch.where((place - place.round()).abs() > 1e-4, torch.floor(place),
                            layer.weight_quantizer.base)
        weight = scale * torch.clamp(floor + up, low, high)
        return torch.conv2d(quantized(x, one.qparams), weight, layer.bias, padding=1)

    if len(layers) == 1:
        (name, (layer, _)), = layers.items()
        return conv(name, x).relu() if layer.plan.rectified else conv(name, x)
    first, second = layers
    return (conv(second, conv(first, x).relu()) + x).relu()


@pytest.mark.parametrize('granularity', ['block', 'layer'])
def test_a_step_minimises_the_papers_loss(granularity, residual_net, images, run_model, problems,
                                          monkeypatch):
    """Eq. 3, 5 and 6 together on a block of the model, against arithmetic of its own: one width of
    each group, the inputs of these widths mixed, the three outputs mixed alike, the high group as
    a target. Nothing is left to chance but which widths (p = 0)."""
    learn, use, seen, lows = ptmq.learn, LearnedWidths.use, {}, set()
    lambdas, gammas = (0.2, 0.3, 0.5), (1.0, 2.0, 3.0)

    def look(problem):
        seen[problem.unit.name] = {name: (layer, layer.solution())
                                   for name, layer in problem.layers.items()}

    def once(problem, widths, rounding, x):
        problem.use(widths)
        return by_hand(seen[problem.unit.name], rounding, widths, x)

    def watched(problem, what, before):
        rounding, drawn = what.groups[0].parameters, []
        draw, = Draws(problem.fit, 4, float_inputs=True)(torch.Generator().manual_seed(0))
        for step in range(4):
            with monkeypatch.context() as patch:
                patch.setattr(LearnedWidths, 'use', lambda self, widths: (
                    drawn.append(widths), use(self, widths))[1])
                loss = what.objective(draw, problem.generator(step),
                                      lambda one, other: (one - other).square().sum())
            three = drawn[-3:]
            assert len(drawn) == 3 * (step + 1) and [one.weight for one in three][1:] == [6, 8]
            x = sum(weight * draw.width_inputs[problem.widths.index(one)]
                    for weight, one in zip(lambdas, three))
            low, middle, high = (once(problem, one, rounding, x) for one in three)
            mixed = lambdas[0] * low + lambdas[1] * middle + lambdas[2] * high
            target, teacher = problem.as_read(draw.float_output), high.detach()
            wanted = sum(gamma * part.square().sum() for gamma, part in zip(
                gammas, (mixed - target, middle - teacher, low - teacher)))
            torch.testing.assert_close(loss, wanted, rtol=0.01, atol=0.0)
            for ours, theirs in zip(*(torch.autograd.grad(one, [*rounding.values()])
                                      for one in (loss, wanted))):
                assert float((ours - theirs).norm()) <= 0.02 * float(theirs.norm())
        lows.update(one.weight for one in drawn[::3])
        return learn(problem, what, before)

    problems(look)
    monkeypatch.setattr(ptmq, 'learn', watched)
    calibrate(residual_net(), images(), request(
        drop_probability=0.0, lambdas=lambdas, gammas=gammas, granularity=granularity),
        run=run_model)
    assert lows == {3, 4}


def test_separate_widths_add_up_what_each_learns_by_itself(residual_net, images, run_model,
                                                           problems, monkeypatch):
    """Against arithmetic of its own: the inputs of a width, and the float block's output."""
    learn, use, seen, checked = ptmq.learn, LearnedWidths.use, {}, []

    def once(problem, widths, rounding, draw):
        problem.use(widths)
        x = draw.width_inputs[problem.widths.index(widths)]
        output = by_hand(seen[problem.unit.name], rounding, widths, x)
        return (output - draw.float_output).square().sum()

    def watched(problem, what, before):
        rounding, drawn = what.groups[0].parameters, []
        draw, = Draws(problem.fit, 4, float_inputs=True)(torch.Generator().manual_seed(0))
        with monkeypatch.context() as patch:
            patch.setattr(LearnedWidths, 'use', lambda self, widths: (
                drawn.append(widths), use(self, widths))[1])
            loss = what.objective(draw, problem.generator(0),
                                  lambda one, other: (one - other).square().sum())
        assert [one.weight for one in drawn] == [3, 6, 8]
        torch.testing.assert_close(loss, sum(once(problem, one, rounding, draw) for one in drawn),
                                   rtol=0.01, atol=0.0)
        checked.append(problem.unit.name)
        return learn(problem, what, before)

    problems(lambda problem: seen.update({problem.unit.name: {
        name: (layer, layer.solution()) for name, layer in problem.layers.items()}}))
    monkeypatch.setattr(ptmq, 'learn', watched)
    calibrate(residual_net(), images(), request(
        widths=[3, 6, 8], drop_probability=0.0, strategy='separate'), run=run_model)
    assert checked == [*BLOCKS]
