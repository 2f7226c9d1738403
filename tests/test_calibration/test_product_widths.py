"""Products of activations in a model of several widths: scales for each of them, switched along."""

import copy
from dataclasses import replace

import pytest
import torch
from attention_nets import Encoder
from thread_team import together

from mmbitsplit.apis import pareto_front
from mmbitsplit.calibration import Journal, calibrate
from mmbitsplit.cli.inspect_checkpoint import plan_of, text_of
from mmbitsplit.export import pack_checkpoint, summarise, unpack_state
from mmbitsplit.methods import read_request
from mmbitsplit.methods.unit_learning_widths import LearnedWidths
from mmbitsplit.methods.unit_problem import UnitProblem
from mmbitsplit.models import describe, rebuild, set_bits, set_plan, widths_of
from mmbitsplit.passes.product_capture import capture_product
from mmbitsplit.solving.solve_product import solve_product
from mmbitsplit.structures import ProductInput, ProductPlan, ProductSolution

NAMES = ['blocks.0.scores', 'blocks.0.mixed']


def request(**more):
    method = dict(type='NestedBitSplit', widths=[4, 8], activation_widths=[3, 6], effort='fast',
                  branches='all', **more.pop('method', {}))
    return read_request({**dict(method=method, calibration=dict(rows_per_layer=256)), **more})


@pytest.fixture
def go(images, seeded, run_model):
    def go(team=None, batches=None, journal=None, progress=None, model=None, **more):
        model = seeded(Encoder) if model is None else model
        options = dict(team=team, journal=journal) | ({} if progress is None
                                                      else dict(progress=progress))
        prepared, report = calibrate(model, images(4) if batches is None else batches,
                                     request(**more), run=run_model, **options)
        return prepared, report
    return go


def products_of(prepared):
    return {name: product.solution() for name, product in prepared.products.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, solution in one.items():
        for a, b in zip((solution.a, solution.b, *solution.narrower_a, *solution.narrower_b),
                        (other[name].a, other[name].b, *other[name].narrower_a,
                         *other[name].narrower_b), strict=True):
            assert torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)


def test_each_width_has_the_scales_of_what_arrives_at_it(go, images):
    prepared, report = go()
    model = prepared.model
    for weight, bits in ((4, 3), (4, 6)):  # 4 bits are solved beside both
        set_bits(model, weight=weight, activation=bits)
        for name, product in prepared.products.items():
            calls = []
            handle = product.register_forward_pre_hook(
                lambda module, args, calls=calls: calls.append(args))
            with torch.no_grad():
                for image in images(4):
                    model(image)
            handle.remove()
            softmax = {'a': 'uniform' if name.endswith('mixed') else None, 'b': None}
            plan = ProductPlan(name, *(ProductInput(bits, softmax=softmax[side])
                                       for side in 'ab'))
            solved = solve_product(plan, [
                capture_product(*inputs, plan, 1 / 4, (0, name, 0, batch))
                for batch, inputs in enumerate(calls)])
            in_use = product.in_use()
            assert [one.num_bits for one in in_use.values()] == [bits, bits]
            for side, wanted in (('a', solved.solution.a), ('b', solved.solution.b)):
                torch.testing.assert_close(in_use[side].scale, wanted.scale, rtol=1e-3, atol=0)
    for row in report.products:
        narrow, wide = row.width_errors
        assert (narrow['activation_bits'], wide['activation_bits']) == (3, 6)
        assert wide['error'] == row.error < narrow['error'] <= narrow['error_minmax']


def test_at_a_width_it_is_the_model_whose_products_have_that_width_alone(go, images):
    model = go()[0].model
    for bits, index in ((3, 0), (6, -1)):
        set_bits(model, weight=8, activation=bits)
        alone = copy.deepcopy(model)
        for name in NAMES:
            product, solution = alone.get_submodule(name), model.get_submodule(name).solution()
            product.install(ProductSolution(*(
                [getattr(solution, f'narrower_{side}')[0], getattr(solution, side)][index]
                for side in 'ab')))
            assert widths_of(alone)[name].a == widths_of(alone)[name].b == (bits,)
        assert torch.equal(model(images(1)[0]), alone(images(1)[0]))


def test_plans_give_each_input_its_width_and_unknown_ones_are_refused(go, images):
    model = go()[0].model
    wide = model(images(1)[0])
    set_plan(model, dict(layers=[], products=[dict(name=NAMES[0], a_bits=3, b_bits=6)]))
    quantizers = model.get_submodule(NAMES[0]).in_use()
    assert [one.num_bits for one in quantizers.values()] == [3, 6]
    narrow = model(images(1)[0])
    assert not torch.equal(wide, narrow)
    with pytest.raises(ValueError, match=f"'{NAMES[0]}' has 3, 6 bits, and the plan says 5 bits"):
        set_plan(model, dict(layers=[], products=[dict(name=NAMES[0], a_bits=5, b_bits=6)]))
    other = copy.deepcopy(model)
    solution = other.get_submodule(NAMES[0]).solution()
    other.get_submodule(NAMES[0]).install(replace(
        solution, narrower_a=tuple(replace(one, quant_min=-8, quant_max=7)
                                   for one in solution.narrower_a)))
    with pytest.raises(ValueError, match=rf"activation=3 .* of '{NAMES[0]}' \(4, 6 bits\)"):
        set_bits(other, weight=4, activation=3)
    assert torch.equal(model(images(1)[0]), narrow)


def test_the_file_gives_back_every_width(go, images, seeded):
    prepared, _ = go()
    packed = pack_checkpoint(prepared.model.state_dict(), describe(prepared), {})['state_dict']
    read, other = unpack_state(packed), seeded(Encoder)
    rebuild(other, read.description)
    other.load_state_dict(read.state)
    for weight, bits in ((4, 3), (8, 3), (8, 6)):
        for model in (prepared.model, other):
            set_bits(model, weight=weight, activation=bits)
        assert torch.equal(prepared.model(images(1)[0]), other(images(1)[0]))
    summary = summarise(read, 1)
    assert [(row['a_bits'], row['a_widths'], row['b_widths']) for row in summary['products']] == [
        (6, [3, 6], [3, 6])] * 2
    assert f'product {NAMES[0]}: 3 6 × 3 6 bits' in text_of(summary)
    set_plan(other, plan_of(summary))
    assert torch.equal(prepared.model(images(1)[0]), other(images(1)[0]))


@pytest.mark.parametrize('more', [
    dict(products=dict(num_bits=6)), dict(overrides=[dict(match='blocks.*', activation=dict(
        num_bits=6))]), dict(plan=dict(layers=[], products=[
            dict(name=name, a_bits=6, b_bits=6) for name in NAMES]))],
    ids=lambda more: next(iter(more)))
def test_a_product_whose_width_is_said_elsewhere_keeps_it(go, more):
    prepared, report = go(**more)
    assert all(widths_of(prepared.model)[name].a == (6,) for name in NAMES)
    assert all(row.bits == (6, 6) and not row.width_errors for row in report.products)


def test_two_processes_and_a_resumed_run_give_what_one_gives(go, images, seeded, tmp_path):
    whole = products_of(go()[0])
    models = [seeded(Encoder) for _ in range(2)]

    def part(team):
        return go(team=team, model=models[team.rank], batches=[
            images(4)[number] for number in team.batches(4)])[0]

    for prepared in together(2, part):
        assert_equal(products_of(prepared), whole)

    class Interrupted(Exception):
        pass

    def stop(step):
        if step.stage == 'layers' and step.layer.name == 'mlps.0.0':
            raise Interrupted

    with pytest.raises(Interrupted):
        go(progress=stop, journal=Journal.open(tmp_path, {'a': 'b'}, resume=False))
    resumed, report = go(journal=Journal.open(tmp_path, {'a': 'b'}, resume=True))
    assert_equal(products_of(resumed), whole)
    assert all(len(row.width_errors) == 2 for row in report.products)


def test_plans_count_the_bit_operations_of_products_at_their_widths(go, images, run_model):
    model = go()[0].model
    front = pareto_front(model, images(2), ['bitops=0.6'], run=run_model, search='program',
                         pairs='all', granularity='layer')
    costs = front.costs['bitops'].layers
    layer = {(own.weight, own.activation): cost for own, cost in costs['mlps.0.0'].items()}
    tokens, width, hidden = 16, 16, 24
    for name in NAMES:  # of all heads together
        found = {own.activation: cost for own, cost in costs[name].items()}
        assert found.keys() == {3, 6}
        for bits, cost in found.items():
            assert cost / layer[8, bits] == pytest.approx(
                tokens * width * tokens * bits ** 2 / (tokens * width * hidden * 8 * bits))
    set_plan(model, front.best('bitops=0.6').plan)
    assert torch.isfinite(model(images(1)[0])).all()


def test_units_are_learned_with_their_products_at_each_width(seeded, images, run_model,
                                                             monkeypatch):
    seen, model = {'learned': set(), 'judged': set()}, seeded(Encoder)
    use, judge = LearnedWidths.use, UnitProblem._error

    def bits(problem):
        return {one.num_bits for name in NAMES if problem.unit.name == 'blocks.0'
                for one in model.get_submodule(name).in_use().values()}

    def used(learned, widths):
        use(learned, widths)
        seen['learned'] |= {(widths.activation, own) for own in bits(learned.problem)}

    def judged(problem, *args):
        seen['judged'] |= bits(problem)
        return judge(problem, *args)

    monkeypatch.setattr(LearnedWidths, 'use', used)
    monkeypatch.setattr(UnitProblem, '_error', judged)
    prepared, report = calibrate(model, images(4), read_request(dict(
        method=dict(type='PTMQ', widths=[3, 4, 6], iterations=4),
        calibration=dict(rows_per_layer=256))), run=run_model)
    assert seen == {'learned': {(one, one) for one in (3, 4, 6)}, 'judged': {3, 4, 6}}
    for name in NAMES:
        assert widths_of(model)[name].a == (3, 4, 6)
        assert {one.num_bits for one in model.get_submodule(name).in_use().values()} == {6}
    assert [len(row.width_errors) for row in report.products] == [3, 3]
