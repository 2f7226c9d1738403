"""The front of a model with several widths, against plans set and measured by hand."""

import copy

import pytest
import torch
from several_widths import float_classifier, pictures, with_widths

from mmbitsplit.apis import quantize_model
from mmbitsplit.apis.pareto import pareto_front
from mmbitsplit.functional import payload_bytes
from mmbitsplit.models import bits_of, quantized_layers, set_bits, set_plan
from mmbitsplit.planning.allocation import allocate
from mmbitsplit.structures import Widths

BLOCKS = {'blocks.0': ('blocks.0.conv1', 'blocks.0.conv2'),
          'blocks.1': ('blocks.1.conv1', 'blocks.1.conv2', 'blocks.1.down'),
          'blocks.2': ('blocks.2.conv1', 'blocks.2.conv2')}


@pytest.fixture(scope='module')
def batches():
    return pictures()


@pytest.fixture(scope='module')
def model(batches):
    return with_widths(float_classifier(), batches)


@pytest.fixture(scope='module')
def front(model, batches):
    return pareto_front(model, batches, [3, '4,bitops=0.5'], evaluations=30)


def divergence(model, wanted, batches):
    """Mean over batches of the mean divergence of a row."""
    with torch.no_grad():
        found = [float((w.double().softmax(-1) * (
            w.double().log_softmax(-1) - model(batch).double().log_softmax(-1))).sum(-1).mean())
            for w, batch in zip(wanted, batches)]
    return sum(found) / len(found)


def scores(model, batches):
    with torch.no_grad():
        return [model(batch) for batch in batches]


def by_hand(model, plan):
    """Rows of a plan by block, written down without the code under test."""
    set_plan(model, {'layers': [
        {'name': name, 'weight_bits': own.weight, 'input_bits': own.activation}
        for block, own in plan.items() for name in BLOCKS[block]]})


def test_each_block_alone_loses_what_it_does_by_hand(model, batches, front):
    assert front.blocks == BLOCKS and front.loss == 'kl'
    widest = dict.fromkeys(BLOCKS, Widths(8, 8))
    by_hand(model, widest)
    wanted = scores(model, batches)
    for block, row in front.table.layers.items():
        assert list(row) == [Widths(bits, bits) for bits in (2, 3, 4, 8)]
        for own, loss in row.items():
            by_hand(model, {**widest, block: own})
            assert loss == pytest.approx(divergence(model, wanted, batches), rel=1e-4, abs=1e-9)
    assert front.table.layers['blocks.0'][Widths(2, 2)] > 1e-3  # there is something to see


def test_plans_keep_budgets_and_have_the_loss_that_they_have_in_the_model(model, batches, front):
    set_bits(model, 8)
    wanted = scores(model, batches)
    for one in front.plans:
        set_plan(model, one.plan)
        assert one.found.whole == pytest.approx(divergence(model, wanted, batches), rel=1e-4,
                                                abs=1e-9)
    three, both = front.best('3'), front.best('4,bitops=0.5')
    assert three.found.costs['weight_bits'] <= 3
    assert both.found.costs['weight_bits'] <= 4 and both.found.costs['bitops'] <= 0.5
    for budget in ('3', '4,bitops=0.5'):
        program, genetic = (one for one in front.plans if one.budget == budget)
        # The search begins at the program's plan and at uniform ones.
        assert genetic.found.whole <= program.found.whole and program.source == 'program'
    uniform = next(one for one in front.plans if one.found.name == 'uniform W3A3')
    assert three.found.whole <= uniform.found.whole
    assert {one.found.name for one in front.plans if one.source == 'uniform'} == {
        f'uniform W{bits}A{bits}' for bits in (2, 3, 4, 8)}


def test_the_program_takes_the_least_sum(front):
    found = allocate(front.table, front.costs, {'weight_bits': 3}, gap=0.0)
    program = next(one for one in front.plans if (one.source, one.budget) == ('program', '3'))
    assert program.found.predicted == pytest.approx(front.base + found.loss)


def test_bytes_are_those_of_the_model_packed_at_the_plan(batches, front):
    plan = next(one for one in front.plans if one.found.name == 'uniform W4A4')
    alone = float_classifier()
    quantize_model(alone, batches, dict(
        method=dict(type='RoundToNearest'), weight=dict(num_bits=4),
        activation=dict(num_bits=4, mode='per_channel')))
    packed = payload_bytes(alone.state_dict().values())
    assert plan.found.costs['bytes'] == pytest.approx(packed, rel=0.02)
    codes = {bits: next(one for one in front.plans if one.found.name == f'uniform W{bits}A{bits}'
                        ).found.costs['bytes'] for bits in (2, 4, 8)}
    weights = sum(layer.codes.numel() for name, layer in quantized_layers(alone)
                  if name.startswith('blocks'))
    assert codes[8] - codes[4] == pytest.approx(weights / 2, rel=0.05)


def test_the_front_holds_what_no_other_plan_beats(front):
    line = [(one.found.costs['bytes'], one.found.whole) for one in front.front()]
    assert line == sorted(line) and [loss for _, loss in line] == sorted(
        (loss for _, loss in line), reverse=True)
    for one in front.plans:
        assert any(size <= one.found.costs['bytes'] and loss <= one.found.whole
                   for size, loss in line)


def test_one_seed_gives_one_front_and_widths_in_use_stay(model, batches, front):
    set_bits(model, weight=3, activation=8)
    before, wanted = bits_of(model), scores(model, batches)
    again = pareto_front(model, batches, [3, '4,bitops=0.5'], evaluations=30)
    assert {**again.to_json(), 'seconds': 0} == {**front.to_json(), 'seconds': 0}
    assert bits_of(model) == before
    assert all(map(torch.equal, scores(model, batches), wanted))
    with pytest.raises(ValueError, match='cannot be kept'):
        pareto_front(model, batches, ['1B'])
    assert bits_of(model) == before


def test_layers_by_themselves_and_all_pairs_of_widths(model, batches):
    found = pareto_front(model, batches, [4], search='program', granularity='layer', pairs='all')
    assert list(found.blocks) == [name for places in BLOCKS.values() for name in places]
    assert len(found.table.layers['blocks.1.down']) == 16
    uniform = {one.found.name: one for one in found.plans}
    assert uniform['uniform W2A8'].found.whole < uniform['uniform W2A2'].found.whole


def test_a_reference_is_what_losses_are_against(model, batches):
    float_model = float_classifier()
    found = pareto_front(model, batches, [4], search='program', reference=float_model)
    wanted = scores(float_model, batches)
    set_bits(model, 8)
    assert found.base == pytest.approx(divergence(model, wanted, batches), rel=1e-4)
    assert found.base > 0 and found.against == 'reference'


def test_what_cannot_be_searched_is_refused(batches, model):
    alone = with_widths(float_classifier(), batches, widths=(4,))
    with pytest.raises(ValueError, match='has one width everywhere.*NestedBitSplit'):
        pareto_front(alone, batches, [4])
    with pytest.raises(ValueError, match="Unknown key 'searches'.*'search'"):
        pareto_front(model, batches, [4], searches='program')
    with pytest.raises(ValueError, match="no layer 'classify'"):
        pareto_front(model, batches, [4], reference=copy.deepcopy(float_classifier()).blocks)
