"""What is asked for of gradients is found, and nobody else pays for it."""

import pytest
import torch
from torch import nn
from unit_methods import WATCHER, Watched, known  # noqa: F401

from mmbitsplit.calibration import Journal, calibrate, layer_solver
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


def rows_of(monkeypatch):
    """What layers are solved on, (rows, targets) by name, of the calibrations to come."""
    found = {}
    solve = layer_solver.solve_layer

    def noting(layer, plan, method, captures, targets, *rest, **more):
        found[plan.name] = (torch.cat([capture.patches for capture in captures], -1),
                            torch.cat([*targets], -1))
        return solve(layer, plan, method, captures, targets, *rest, **more)

    monkeypatch.setattr(layer_solver, 'solve_layer', noting)
    return found


class Corner(nn.Module):
    """Of whose first layer only a corner reaches the raw outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.lost, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        seen = torch.relu(self.body(x))[..., :2, :2]
        return self.head(seen + 0 * self.lost(x).detach().mean())


SOME_ROWS = dict(rows_per_layer=64, holdout=0.25)


@pytest.mark.parametrize('sampling', ['importance', 'confidence'])
def test_rows_come_from_where_raw_outputs_depend_on_them(sampling, seeded, images, make_spec,
                                                         run_model, monkeypatch):
    batches, rows = images(8, size=16), rows_of(monkeypatch)
    shares = {}
    for way in ('even', sampling):
        model = seeded(Corner)
        _, report = calibrate(model, batches, make_spec(calibration=dict(
            **SOME_ROWS, sampling=way)), run=run_model)
        x, y = rows['stem']
        assert x.shape[-1] == y.shape[-1] == 64
        patches = [torch.nn.functional.unfold(batch, 3, padding=1).unflatten(-1, (16, 16))
                   for batch in batches]  # (B, 27, 16, 16)
        corners = torch.cat([one[..., :2, :2].movedim(1, 0).flatten(1) for one in patches], 1)
        shares[way] = float((x[0].t().unsqueeze(1) == corners.t()).all(-1).any(1).double().mean())
        # Inputs and targets are of the same places.
        float_stem = seeded(Corner).stem.weight.detach().flatten(1)
        torch.testing.assert_close(y[0], float_stem @ x[0], rtol=1e-4, atol=1e-5)
    # 8 corners of 4 in 512 positions a batch of 2 images: 8 rows a batch are drawn.
    assert shares['even'] < 0.15 and shares[sampling] > 0.5
    notes = {layer.name: layer.notes for layer in report.layers}
    assert [name for name in notes if layer_solver.UNREACHED in notes[name]] == ['lost']
    assert report.calibration['sampling'] == sampling


def test_positions_that_matter_alike_are_those_drawn_evenly(seeded, images, make_spec, run_model,
                                                            assert_same_state, monkeypatch):
    def alike(self, batch):
        found = gradients(self, batch)
        for calls in found.maps.values():
            for values in calls:
                values.fill_(0.3)
        return found

    gradients = importance.ImportancePass._gradients
    monkeypatch.setattr(importance.ImportancePass, '_gradients', alike)
    models = []
    for sampling in ('even', 'importance'):
        models.append(seeded(Corner))
        calibrate(models[-1], images(8, size=16), make_spec(calibration=dict(
            **SOME_ROWS, sampling=sampling)), run=run_model)
    assert_same_state(*models)


class Killed(BaseException):
    """Stands in for ``kill -9``."""


@pytest.mark.parametrize('solved', [1, 3])
def test_killed_it_goes_on_with_the_same_positions(solved, residual_net, images, make_spec,
                                                   run_model, assert_same_state, tmp_path):
    spec = make_spec(calibration=dict(**SOME_ROWS, sampling='importance'))
    whole, model = residual_net(), residual_net()
    calibrate(whole, images(size=16), spec, run=run_model)

    def kill(step):
        if step.stage == 'layers' and step.done == solved:
            raise Killed

    with pytest.raises(Killed):
        calibrate(model, images(size=16), spec, run=run_model, progress=kill,
                  journal=Journal.open(tmp_path, {}, resume=False))
    model = residual_net()
    journal = Journal.open(tmp_path, {}, resume=True)
    assert len(journal.entries) == solved
    calibrate(model, images(size=16), spec, run=run_model, journal=journal)
    assert_same_state(model, whole)


def test_a_method_that_solves_layers_cannot_ask_for_channels():
    class Wrong(Method):
        needs = ('sums', 'importance')

    with pytest.raises(ValueError, match="'importance'.*solves='unit' alone"):
        check_declared(Wrong())
