"""Widths within a budget or for a metric: the best plan stays, whatever the table believes."""

import json
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from thread_team import together

from mmbitsplit.calibration import Journal, Progress, Team, calibrate
from mmbitsplit.calibration.budget import Callbacks, NoPlanHolds, calibrate_within
from mmbitsplit.calibration.plan_loss import Given, PlanLoss
from mmbitsplit.calibration.plan_trials import MetricTarget, PlanTrials
from mmbitsplit.functional import payload_bytes
from mmbitsplit.models import quantized_layers
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.planning.plan_search import PlanProblem
from mmbitsplit.planning.width_choices import with_widths
from mmbitsplit.structures import Widths, WidthTable
from mmbitsplit.structures.plan_choice import PlanChoice

INNER = [f'blocks.{block}.conv{conv}' for block in (0, 1) for conv in (1, 2)]
W2, W4, W8 = Widths(2), Widths(4), Widths(8)
METHOD = {'type': 'RoundToNearest'}


class Table:
    """Stands in for what measures: the losses are made up, all layers are of one size.

    Args:
        first: What the first layer loses more than the others.
        truth: The loss of a whole plan; the table's sum when not given.
    """

    def __init__(self, spec, first=1.0, truth=None):
        choices = spec.budget.choices()
        losses = {name: {widths: weight * 4.0 ** -widths.weight for widths in choices}
                  for name, weight in zip(INNER, (first, 1.2, 1.1, 1.0))}
        self.problem = PlanProblem(
            WidthTable(losses), 0.5,
            {'weight_bits': WidthTable({name: {widths: widths.weight / len(INNER)
                                               for widths in choices} for name in INNER}),
             'bytes': WidthTable({**{name: {widths: 100.0 * widths.weight for widths in choices}
                                     for name in INNER}, 'stem': {W8: 1000.0}})}, choices)
        self.kind = 'raw'
        self.loss_of = truth or (lambda plan: 0.5 + self.problem.losses.sum(plan))


@pytest.fixture
def within(residual_net, images, make_spec, run_model):
    """Calibrates a fresh model within a budget; ``opened`` counts how often it was measured."""
    def go(budget, table=Table, model=None, journal=None, target=None, callbacks=None, opened=None,
           **request):
        spec = make_spec(**{'method': METHOD, **request, 'budget': {
            'widths': [2, 4, 8], **budget}})
        model = residual_net() if model is None else model

        @contextmanager
        def measuring(given, spec):
            if opened is not None:
                opened.append(1)
            yield table(spec)

        given = Given(model=model, batches=images(8), run=run_model)
        prepared, report = calibrate_within(
            given, spec, measuring=measuring, target=target, journal=journal,
            callbacks=callbacks or Callbacks())
        return model, spec, prepared, report
    return go


def widths_of(model):
    return {name: layer.num_bits for name, layer in quantized_layers(model) if name in INNER}


def plans_of(report):
    return {plan['name']: plan for plan in report.budget['plans']}


def test_the_model_is_the_one_that_its_plan_gives(within, residual_net, images, run_model,
                                                  assert_same_state):
    told = []
    model, spec, prepared, report = within(
        {'weight_bits': 5}, lambda spec: Table(spec, first=1000.0),
        callbacks=Callbacks(line=told.append))
    plans = plans_of(report)
    assert list(plans) == ['mixed', 'uniform W4']
    chosen = report.budget['plans'][report.budget['chosen']]
    assert chosen['trial']['loss'] == min(plan['trial']['loss'] for plan in plans.values())
    assert plans['mixed']['widths'] == dict(zip(INNER, ['W8', 'W4', 'W4', 'W4']))
    assert plans['mixed']['costs'] == {'weight_bits': 5.0, 'bytes': 3000.0}
    alone = residual_net()
    calibrate(alone, images(8), with_widths(spec, {
        name: Widths.read(text) for name, text in chosen['widths'].items()}), run=run_model)
    assert_same_state(model, alone)
    assert prepared.layers.keys() == {row.name for row in report.layers}
    assert widths_of(model) == {name: int(text[1:]) for name, text in chosen['widths'].items()}
    assert chosen['trial']['payload'] == payload_bytes(model.state_dict().values())
    assert json.loads(json.dumps(report.budget)) == report.budget
    assert len(told) == 4 and 'mixed with 5.00 bits' in told[0]


def test_a_plan_that_the_table_is_wrong_about_is_not_taken(within):
    """By the table the first layer matters alone; two bits elsewhere ruin the model."""
    def wrong(spec):
        table = Table(spec, first=1e6)
        table.problem.losses.layers.update({name: {widths: 0.0 for widths in (W2, W4, W8)}
                                            for name in INNER[1:]})
        return table
    model, _, _, report = within({'weight_bits': 4}, wrong)
    plans = plans_of(report)
    assert plans['mixed']['whole'] < plans['uniform W4']['whole']
    assert plans['mixed']['trial']['loss'] > plans['uniform W4']['trial']['loss']
    assert set(widths_of(model).values()) == {4} and report.budget['chosen'] == 1


def test_one_evaluation_calibrates_one_plan(within):
    _, _, _, report = within({'weight_bits': 5, 'evaluations': 1})
    assert len(report.budget['plans']) == 1


def test_what_overrides_and_roles_fix_stays(within):
    fixed = {'overrides': [{'match': INNER[1], 'weight': {'num_bits': 3}}]}

    def without(spec):
        table = Table(spec, first=1000.0)
        for rows in (table.problem.losses, *table.problem.costs.values()):
            rows.layers[INNER[1]] = {Widths(3): 0.0}
        return table
    model, _, _, report = within({'weight_bits': 4}, without, **fixed)
    assert widths_of(model)[INNER[1]] == 3
    assert {row.name: row.weight_bits for row in report.layers if row.role != 'inner'} == {
        'stem': 8, 'classify': 8, 'regress': 8}


@pytest.mark.parametrize(('budget', 'told'), [
    ({'bytes': 1000}, 'bytes from 1800 to 4200'),
    ({'max_drop': 0.5}, 'max_drop needs a metric'),
])
def test_what_cannot_be_is_said_and_the_model_stays_float(budget, told, within, residual_net,
                                                          assert_same_state):
    model = residual_net()
    with pytest.raises(ValueError, match=told):
        within(budget, model=model)
    assert not list(quantized_layers(model))
    assert_same_state(model, residual_net())


# A metric.

def metric(widths, need):
    """A metric that falls by 0.1 for each bit that layers have less than they need."""
    calls = []

    def evaluate():
        calls.append(widths())
        missing = sum(max(0, wanted - bits) for wanted, bits in zip(need, calls[-1].values()))
        return {'points': 80 - 0.1 * missing}
    return MetricTarget(evaluate, lambda metrics: round(80 - metrics['points'], 6)), calls


@pytest.fixture
def nothing_calibrated(monkeypatch):
    """Plans are taken for calibrated models; their widths are those of the last one."""
    last = {}

    def calibrated(trials, plan):
        last.update({name: widths.weight for name, widths in plan.widths.items()})
        stored = Mock(**{'state_dict.return_value': {'': torch.zeros(sum(last.values()),
                                                                     dtype=torch.uint8)}})
        return SimpleNamespace(
            plan=plan, prepared=SimpleNamespace(model=stored), bit_plan=None,
            report=SimpleNamespace(), state=ModelState(trials.given.model))
    monkeypatch.setattr(PlanTrials, 'calibrate', calibrated)
    monkeypatch.setattr(PlanLoss, 'of', lambda *args: Mock(return_value=1.0, unseen=True))
    return last


@pytest.mark.parametrize(('need', 'most', 'bits'), [
    ((2, 2, 2, 2), 0.0, 8), ((8, 2, 2, 2), 0.0, 14), ((8, 8, 8, 8), 0.0, 32),
    ((8, 8, 4, 2), 0.45, 18), ((4, 4, 4, 4), 0.0, 16)], ids=str)
@pytest.mark.parametrize('evaluations', [6, 9])
def test_the_smallest_plan_that_holds_is_found(need, most, bits, evaluations, within,
                                               nothing_calibrated):
    """In the last case it is uniform, by the table the first layer needs most."""
    target, calls = metric(lambda: dict(nothing_calibrated), need)
    budget = within({'max_drop': most, 'evaluations': evaluations},
                    lambda spec: Table(spec, first=1e3), target=target)[3].budget
    chosen = budget['plans'][budget['chosen']]
    assert len(calls) == len(budget['plans']) <= evaluations
    assert len(calls) == len({tuple(plan.items()) for plan in calls})
    assert budget['held'] and chosen['trial']['holds'] and chosen['trial']['drop'] <= most
    assert 4 * chosen['costs']['weight_bits'] == chosen['trial']['payload'] == bits


def test_limits_hold_beside_a_metric(within, nothing_calibrated):
    target, _ = metric(lambda: dict(nothing_calibrated), (4, 4, 4, 4))
    for limits in ({'weight_bits': 5}, {'bytes': 1000 + 4 * 500}):
        budget = within({'max_drop': 9.0, 'evaluations': 1, **limits}, target=target)[3].budget
        assert [plan['costs']['bytes'] for plan in budget['plans']] == [3000]  # the largest alone


def test_none_that_holds_is_said_with_the_least_drop(within, residual_net, nothing_calibrated,
                                                     assert_same_state):
    model = residual_net()
    target, calls = metric(lambda: dict(nothing_calibrated), (9, 9, 9, 9))
    with pytest.raises(NoPlanHolds, match=r'max_drop=0.3: of 3 .*least drop is 0.40 points, with '
                                          '8.00 bits') as error:
        within({'max_drop': 0.3, 'evaluations': 4}, model=model, target=target)
    assert len(calls) == 3 and isinstance(error.value.choice, PlanChoice)
    assert error.value.choice.to_json()['held'] is False
    assert_same_state(model, residual_net())


# Interrupted.

class Interrupted(Exception):
    """Stands in for ``kill -9``."""


@pytest.mark.slow
@pytest.mark.parametrize(('stop', 'budget'), [
    (3, {'weight_bits': 5}), (7, {'weight_bits': 5}), (12, {'weight_bits': 5}),
    (10, {'max_drop': 0.25, 'evaluations': 3})], ids=str)
def test_an_interrupted_search_goes_on_where_it_was(stop, budget, within, residual_net, tmp_path,
                                                    assert_same_state):
    """After so many layers, of 7 a plan; what was measured, tried and solved is not done again."""
    solved, opened = [], []

    def go(journal, progress=lambda step: None):
        model = residual_net()
        target, calls = metric(lambda: widths_of(model), (4, 4, 4, 4))
        result = within(budget, model=model, target=target, journal=journal, opened=opened,
                        callbacks=Callbacks(progress=progress))
        return result, calls

    def counting(step: Progress):
        if step.layer is not None:
            solved.append(step.layer.name)
            if len(solved) == stop:
                raise Interrupted

    (wanted, _, _, whole), every = go(None)
    identity = {'weights': 'those of this test'}
    with pytest.raises(Interrupted):
        go(Journal.open(tmp_path, identity, resume=False), counting)
    opened.clear(), solved.clear()
    (model, _, _, report), calls = go(Journal.open(tmp_path, identity, resume=True),
                                      lambda step: solved.append(step))
    assert_same_state(model, wanted)
    assert report.budget == whole.budget
    done = stop // 7
    if 'weight_bits' in budget:
        assert not opened  # what was measured led to plans, which are known
    else:
        assert len(calls) == len(every) - done
    # A float pass of a plan that has layers to solve; layers taken over are told as layers.
    passes = [step for step in solved if step.stage == 'float' and step.done == step.total]
    assert len(passes) == len(whole.budget['plans']) - done


# Several processes.

def test_two_processes_choose_the_plan_of_one(residual_net, images, make_spec, run_model,
                                              assert_same_state):
    """Nothing stands in for anything but processes: threads, which exchange as these do."""
    spec = make_spec(method=METHOD, budget=dict(weight_bits=5, widths=[2, 4, 8]))
    batches = images(8)
    models = [residual_net() for _ in range(3)]  # threads would share the generator of weights

    def go(team):
        model = models[team.size - 1 + team.rank]
        _, report = calibrate_within(Given(
            model=model, batches=[batches[number] for number in team.batches(len(batches))],
            run=run_model, team=team), spec)
        return model, report

    model, report = go(Team())
    plans = [(plan['name'], plan['widths']) for plan in report.budget['plans']]
    assert 'mixed' in dict(plans)
    for ours, found in together(2, go):
        assert [(plan['name'], plan['widths']) for plan in found.budget['plans']] == plans
        assert found.budget['chosen'] == report.budget['chosen']
        assert found.budget['exchanges'] == report.budget['exchanges']
        assert found.budget['plans'][0]['trial']['loss'] == pytest.approx(
            report.budget['plans'][0]['trial']['loss'], rel=1e-6)
        assert_same_state(ours, model)


def test_what_one_budget_tried_serves_another(within, nothing_calibrated, tmp_path):
    """Its metric too, where it was measured; whether that holds is asked anew."""
    def go(budget, resume=True):
        target, calls = metric(lambda: dict(nothing_calibrated), (8, 4, 2, 2))
        _, _, _, report = within(budget, lambda spec: Table(spec, first=1e3), target=target,
                                 journal=Journal.open(tmp_path, {}, resume=resume))
        return report.budget, calls
    _, first = go({'max_drop': 0.25, 'evaluations': 6}, resume=False)
    budget, calls = go({'max_drop': 0.5, 'evaluations': 6})
    assert len(calls) < len(first) and budget['held']
    assert all(plan['trial']['holds'] == (plan['trial']['drop'] <= 0.5)
               for plan in budget['plans'])
    budget, calls = go({'weight_bits': 5})  # not asked for, so not told
    assert not calls and all(plan['trial']['drop'] is None for plan in budget['plans'])


# The loss that plans are judged by.

def test_the_loss_of_plans_is_of_images_that_no_layer_saw(residual_net, images, make_spec,
                                                         run_model):
    model, spec = residual_net(), make_spec(method=METHOD, weight={'num_bits': 3})
    seen = []

    def run(model, batch):
        seen.append(batch)
        return run_model(model, batch)

    batches = images(16)
    given = Given(model=model, batches=batches, run=run)
    before = {name: id(module) for name, module in model.named_modules()}
    loss = PlanLoss.of(given, spec)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert loss(given) < 1e-9  # the float model's own, batch norms not folded
    calibrate(model, batches, spec, run=run_model)
    seen.clear()
    found = loss(given)
    assert found > 1e-4 and loss.unseen and len(seen) == len(loss.batches) == 4
    assert all(any(batch is batches[number] for batch in seen) for number in loss.batches)
