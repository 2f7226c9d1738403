"""What is asked for of gradients is found, and nobody else pays for it."""

import pytest
import torch
from unit_methods import WATCHER, Watched, known  # noqa: F401

from mmbitsplit.calibration import calibrate
from mmbitsplit.methods import METHODS, Method
from mmbitsplit.methods.base import check_declared
from mmbitsplit.passes import importance

WATCHED = dict(weight=dict(num_bits=3))


@pytest.fixture
def problems(known, monkeypatch):  # noqa: F811
    """Problems of units, by name, of methods of this test."""
    found = {}

    def note(problem):
        found[problem.unit.name] = problem
        return ()

    class Weighing(Watched):
        needs = ('sums', 'unit_io', 'importance')

    monkeypatch.setitem(WATCHER, 'solve', note)
    monkeypatch.setitem(METHODS, 'Weighing', Weighing)
    return found


def test_channels_of_a_unit_count_as_they_reach_the_raw_outputs(
        problems, residual_net, images, make_spec, run_model):
    model, steps = residual_net(), []
    for head in (model.classify, model.regress):
        with torch.no_grad():
            head.weight[:, 4] = 0  # channel 4 of the last block reaches nothing
    _, report = calibrate(model, images(), make_spec(**WATCHED, method=dict(type='Weighing')),
                          run=run_model, progress=steps.append)
    channels = {name: len(problem.importance) for name, problem in problems.items()}
    assert channels == {'stem': 6, 'blocks.0': 6, 'blocks.1': 6, 'classify': 4, 'regress': 2}
    for problem in problems.values():
        assert float(problem.importance.mean()) == pytest.approx(1)
        assert bool((problem.importance >= 0).all())
    assert problems['blocks.1'].importance.argmin() == 4
    assert problems['blocks.1'].importance[4] == 0
    assert [(step.done, step.total) for step in steps if step.stage == 'importance'] == [
        (number, 4) for number in range(1, 5)]
    assert report.seconds['importance'] > 0


def test_who_asks_for_none_gets_none(problems, residual_net, images, make_spec, run_model,
                                     monkeypatch):
    monkeypatch.setattr(importance.ImportancePass, 'run', None)
    _, report = calibrate(residual_net(), images(), make_spec(
        **WATCHED, method=dict(type='Watched')), run=run_model)
    assert {problem.importance for problem in problems.values()} == {None}
    assert 'importance' not in report.seconds


def test_brecq_asks_for_it_to_weigh_channels_and_learns_others_then(
        residual_net, images, make_spec, run_model):
    models = {}
    for weighing in ('none', 'fisher'):
        models[weighing] = residual_net()
        calibrate(models[weighing], images(), make_spec(**WATCHED, method=dict(
            type='BRECQ', iterations=20, input_iterations=5, importance=weighing)), run=run_model)
    states = [model.state_dict() for model in models.values()]
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_method_that_solves_layers_cannot_ask_for_channels():
    class Wrong(Method):
        needs = ('sums', 'importance')

    with pytest.raises(ValueError, match="'importance'.*solves='unit' alone"):
        check_declared(Wrong())
