"""Products of activations are solved in lockstep with the layers around them."""

import copy
import json

import pytest
import torch
from attention_nets import Encoder
from thread_team import together

from mmbitsplit.calibration import Journal, calibrate
from mmbitsplit.export import pack_checkpoint, unpack_state
from mmbitsplit.models import describe, quantized_products, rebuild
from mmbitsplit.passes.product_capture import capture_product
from mmbitsplit.solving.solve_product import solve_product
from mmbitsplit.structures import ProductReport

IDENTITY = {'weights': 'those of this test'}
ROUNDED = dict(type='RoundToNearest', bias_correction=True)
W4A4 = dict(method=ROUNDED, activation=dict(num_bits=4))
LEARNED = dict(method=dict(type='QDrop', iterations=8), activation=dict(num_bits=4))
NAMES = ['blocks.0.scores', 'blocks.0.mixed']


class Interrupted(Exception):
    """Stands in for ``kill -9``."""


@pytest.fixture
def encoder(seeded):
    return lambda **kwargs: seeded(lambda: Encoder(**kwargs))


@pytest.fixture
def go(images, make_spec, run_model):
    def go(model, number=4, **spec):
        return calibrate(model, images(number), make_spec(**{**W4A4, **spec}), run=run_model)
    return go


def inputs_of(product, model, image):
    calls = []
    handle = product.register_forward_pre_hook(lambda module, args: calls.append(args))
    with torch.no_grad():
        model(image)
    handle.remove()
    return calls


@pytest.mark.parametrize('shared', [False, True])
def test_scales_are_those_of_the_inputs_that_arrive(shared, encoder, go, images, make_spec):
    model = encoder(depth=2, shared=shared, masked=True)
    prepared, report = go(model)
    rows = {row.name: row for row in report.products}
    assert len(rows) == (2 if shared else 4)
    for plan in prepared.plan.products:
        product, captures = prepared.products[plan.name], []
        for batch, image in enumerate(images()):
            calls = inputs_of(product, model, image)
            captures += [capture_product(*inputs, plan, 1 / (4 * len(calls)), (
                0, plan.name, number, batch)) for number, inputs in enumerate(calls)]
        assert len(calls) == (2 if shared else 1)
        solved = solve_product(plan, captures)
        row = rows[plan.name]
        assert (row.calls, row.scale_search) == (len(captures), solved.searches)
        for side in 'ab':
            found, wanted = getattr(product.solution(), side), getattr(solved.solution, side)
            assert torch.equal(found.scale, wanted.scale)
            assert torch.equal(found.zero_point, wanted.zero_point)
    assert torch.isfinite(model(images()[0])).all()  # masks come after the scores


def test_what_is_said_of_products(encoder, go):
    _, report = go(encoder())
    scores, mixed = report.products
    assert isinstance(scores, ProductReport) and [scores.name, mixed.name] == NAMES
    assert scores.bits == mixed.bits == (4, 4) and mixed.softmax == (True, False)
    assert scores.shapes == ((2, 2, 16, 8), (2, 2, 8, 16)) and mixed.symmetry[0] == 'unsigned'
    assert 0 < scores.error <= scores.error_minmax < 1
    shares = report.multiplications
    assert shares['quantized'] == pytest.approx(1) and not report.kept_float
    assert scores.multiplications == mixed.multiplications == pytest.approx(shares['products'] / 2)
    tokens, images = 16, 2
    layers = images * (tokens * (12 * 16 + 16 * 48 + 16 * 16 + 2 * 16 * 24) + 16 * 5)
    assert shares['total'] == layers + 2 * images * 2 * tokens * tokens * 8
    assert shares['one_float'] == pytest.approx(images * tokens * 12 * 16 / shares['total'])
    assert report.plan['products'] == [dict(name=name, a_bits=4, b_bits=4) for name in NAMES]


@pytest.mark.parametrize('spec, reason', [
    (dict(products=None), 'products=None'),
    (dict(activation=dict(num_bits=None)), 'inputs of layers'),
    (dict(activation=dict(num_bits=None), calibration=dict(num_images=0),
          method=dict(type='RoundToNearest')), 'inputs of layers'),
    (dict(overrides=[dict(match='*.scores', skip=True), dict(match='*.mixed', skip=True)]),
     'skipped by an override'),
    (dict(scope='patch+mlps'), 'outside scope'),
    (dict(plan=dict(layers=[], products=[
        dict(name=name, a_bits=None, b_bits=None) for name in NAMES])), 'by the plan')])
def test_what_stays_float_is_named_with_its_share(spec, reason, encoder, go):
    prepared, report = go(encoder(), **spec)
    kept = {part.name: part for part in report.kept_float if part.name in NAMES}
    assert list(kept) == NAMES and all(reason in part.reason for part in kept.values())
    assert all(0 < part.multiplications < 0.5 for part in kept.values())
    assert not report.products and report.multiplications['products'] == 0
    assert not any(name.startswith(tuple(NAMES)) for name in prepared.model.state_dict())


def test_a_plan_says_which_products_stay_float(encoder, go):
    _, report = go(encoder(), overrides=[dict(match='*.mixed', skip=True)])
    _, again = go(encoder(), plan=json.loads(json.dumps(report.plan)))
    assert again.plan == report.plan
    assert [row['a_bits'] for row in again.plan['products']] == [4, None]
    assert [part.name for part in again.kept_float] == NAMES[1:]


def test_widths_of_overrides_and_plans(encoder, go):
    _, report = go(encoder(), products=dict(num_bits=6), overrides=[
        dict(match='*.scores', activation=dict(symmetry='signed', scale_search='minmax'))])
    scores, mixed = report.products
    assert scores.bits == mixed.bits == (6, 6)
    assert scores.symmetry == ('signed', 'signed') and scores.scale_search == ('minmax', 'minmax')
    _, report = go(encoder(), plan=dict(layers=[], products=[
        dict(name=NAMES[1], a_bits=8, b_bits=None)]))
    assert [row.bits for row in report.products] == [(4, 4), (8, None)]
    assert report.multiplications['one_float'] > report.products[1].multiplications
    with pytest.raises(ValueError, match="product 'blocks.0.score' that the model does not have"):
        go(encoder(), plan=dict(layers=[], products=[
            dict(name='blocks.0.score', a_bits=8, b_bits=8)]))


@pytest.mark.parametrize('spec', [
    dict(products=dict(granularity='head')), dict(products=dict(softmax='log2')), {}])
def test_a_packed_checkpoint_gives_the_same(spec, encoder, go, images):
    prepared, report = go(encoder(), **spec)
    packed = pack_checkpoint(prepared.model.state_dict(), describe(prepared), {})['state_dict']
    read, again = unpack_state(packed), encoder()
    rebuild(again, read.description)
    again.load_state_dict(read.state)
    image = images()[0]
    assert torch.equal(again(image), prepared.model(image))
    assert [name for name, _ in quantized_products(again)] == NAMES
    wanted = ('head', 'tensor') if 'granularity' in spec.get('products', {}) else None
    assert wanted is None or report.products[0].granularity == ('head', 'head')
    with pytest.raises(ValueError, match="'patch' is a product of activations in the checkpoint"):
        rebuild(encoder(), {**read.description, 'products': {'patch': {}}})


def test_old_descriptions_and_models_without_products_say_nothing_of_them(residual_net, go):
    prepared, report = go(residual_net())
    assert 'products' not in describe(prepared) and 'products' not in report.plan
    assert not report.products and report.multiplications['products'] == 0


@pytest.mark.parametrize('spec', [{}, LEARNED], ids=['layers', 'units'])
def test_what_was_interrupted_goes_on(spec, encoder, images, make_spec, run_model, tmp_path,
                                      assert_same_state):
    def run(folder, resume, stop=None):
        def progress(step):
            if stop is not None and step.stage == 'layers' and step.done == stop:
                raise Interrupted
        model = encoder(depth=2, shared=False)
        journal = Journal.open(tmp_path / folder, IDENTITY, resume=resume)
        _, report = calibrate(model, images(4), make_spec(**{**W4A4, **spec}), run=run_model,
                              journal=journal, progress=progress)
        return model, report, journal

    whole, report, _ = run('whole', False)
    with pytest.raises(Interrupted):
        run('part', False, stop=5)
    model, again, journal = run('part', True)
    assert any(type(entry).__name__ == 'ProductEntry' for entry in journal.entries)
    assert_same_state(model, whole)
    assert [{**vars(row), 'seconds': 0} for row in again.products] \
        == [{**vars(row), 'seconds': 0} for row in report.products]


def test_two_processes_give_what_one_gives(encoder, images, make_spec, run_model,
                                           assert_same_state):
    models = [encoder(depth=2, shared=True) for _ in range(3)]
    spec = make_spec(**W4A4, tuning=())
    calibrate(models[2], images(5), spec, run=run_model)
    together(2, lambda team: calibrate(
        models[team.rank], [images(5)[number] for number in team.batches(5)], spec,
        run=run_model, team=team))
    for model in models[:2]:
        assert_same_state(model, models[2])


def test_units_are_learned_with_products_in_them(encoder, go):
    model = encoder()
    prepared, report = go(model, **LEARNED)
    inside = [unit for unit in report.units if 'blocks.0.qkv' in unit.layers]
    assert len(inside[0].layers) > 1
    assert {row.unit_taken for row in report.layers if row.name in inside[0].layers} != {None}
    assert [row.bits for row in report.products] == [(4, 4)] * 2
    assert all(product.quantized for product in prepared.products.values())


def test_an_error_gives_the_float_model_back(encoder, images, make_spec, run_model):
    model = encoder()
    before = copy.deepcopy(model.state_dict())

    def progress(step):
        if step.layer is not None and step.layer.name == 'blocks.0.proj':
            raise Interrupted
    with pytest.raises(Interrupted):
        calibrate(model, images(4), make_spec(**W4A4), run=run_model, progress=progress)
    assert model.state_dict().keys() == before.keys()
    assert not list(quantized_products(model))


def test_float_images_that_reach_infinity_are_named(encoder, images, make_spec, run_model):
    model = encoder()
    model.blocks[0].scores.register_forward_pre_hook(
        lambda module, args: (args[0] * float('inf'), args[1]))
    with pytest.raises(ValueError, match='NaN or inf'):
        calibrate(model, images(4), make_spec(**W4A4), run=run_model)


def test_a_step_of_tuning_leaves_products_as_they_are(encoder, go):
    tuned, report = go(encoder(), tuning=dict(type='OutputTuning', rounds=1, steps=2))
    plain, _ = go(encoder())
    assert [outcome['type'] for outcome in report.tuning] == ['OutputTuning']
    names = [name for name in tuned.model.state_dict() if '.a_quantizer.' in name]
    assert len(names) == 4
    for name in names:
        assert torch.equal(tuned.model.state_dict()[name], plain.model.state_dict()[name])
