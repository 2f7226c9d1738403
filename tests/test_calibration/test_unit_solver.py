"""Units are improved where that lowers their error, and an interrupted calibration ends alike."""

import copy

import pytest
import torch
from lockstep_nets import Optional
from pyramids import Detector, LevelHead
from torch import nn
from unit_methods import WATCHER, LearnedScale, known  # noqa: F401

from mmbitsplit.calibration import Journal, calibrate
from mmbitsplit.calibration.unit_solver import counting_if_batches_differ
from mmbitsplit.methods.unit_problem import UnitCandidate
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.twin_branches import BatchesDiffer

LEARNED = dict(weight=dict(num_bits=2), first_last=dict(weight_bits=2),
               method=dict(type='LearnedScale', steps=30))
WATCHED = dict(weight=dict(num_bits=3), method=dict(type='Watched'))
IDENTITY = {'weights': 'those of this test'}


class Killed(BaseException):
    """Stands in for ``kill -9``."""


def test_a_scale_learned_by_gradient_lowers_the_error_of_images_not_looked_at(
        residual_net, images, make_spec, run_model):
    model, batches = residual_net(), images(6)
    _, report = calibrate(model, copy.deepcopy(batches), make_spec(**LEARNED), run=run_model)
    by_unit = {layer.unit_taken: layer.unit_errors for layer in report.layers}
    assert set(by_unit) >= {'learned scale'}
    for taken, errors in by_unit.items():
        assert set(errors) == {'layers', 'learned scale'}
        assert errors[taken] == min(errors.values())
    gains = [layer.unit_errors['learned scale'] / layer.unit_errors['layers']
             for layer in report.layers if layer.name.startswith('blocks')]
    assert min(gains) < 0.99
    for layer in report.layers:
        changed = layer.unit_taken == 'learned scale'
        assert any('together' in note for note in layer.notes) == changed


def test_what_gets_worse_on_held_out_images_is_not_taken(residual_net, images, make_spec,
                                                         run_model, assert_same_state,
                                                         monkeypatch):
    def doubled(problem):
        for layer in problem.layers.values():
            layer.weight_quantizer.scale = layer.weight_quantizer.scale * 2
        yield problem.candidate('doubled')

    models = []
    for solve in (doubled, lambda problem: ()):
        monkeypatch.setitem(WATCHER, 'solve', solve)
        models.append(residual_net())
        _, report = calibrate(models[-1], images(), make_spec(**WATCHED), run=run_model)
        assert {layer.unit_taken for layer in report.layers} == {'layers'}
    assert_same_state(*models)


@pytest.mark.parametrize('net', ['residual', 'shared head'])
@pytest.mark.parametrize('entries', [1, 2, 4])
def test_killed_in_the_middle_of_a_unit_it_goes_on_to_the_same_codes(
        net, entries, residual_net, seeded, images, make_spec, run_model, assert_same_state,
        monkeypatch, tmp_path):
    def make():
        return residual_net() if net == 'residual' else seeded(lambda: Detector(LevelHead()))

    spec, wanted, model = make_spec(**LEARNED), make(), make()
    calibrate(wanted, images(), spec, run=run_model)
    append, written = Journal.append, []

    def append_until(journal, entry):
        if len(written) == entries:
            raise Killed
        written.append(entry.name)
        append(journal, entry)

    monkeypatch.setattr(Journal, 'append', append_until)
    with pytest.raises(Killed):
        calibrate(model, images(), spec, run=run_model,
                  journal=Journal.open(tmp_path, IDENTITY, resume=False))
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())
    monkeypatch.setattr(Journal, 'append', append)
    again = make()
    journal = Journal.open(tmp_path, IDENTITY, resume=True)
    assert len(journal.entries) == entries
    _, report = calibrate(again, images(), spec, run=run_model, journal=journal)
    assert_same_state(again, wanted)
    taken_over = report.calibration['layers_taken_over']
    assert taken_over <= entries  # what was written of a unit that is not whole is dropped
    assert len(Journal.open(tmp_path, IDENTITY, resume=True).entries) == len(report.layers)


def test_where_batches_differ_the_journal_begins_again_after_a_count(seeded, images, make_spec,
                                                                     run_model, tmp_path):
    batches = [batch.abs() for batch in images(4)]
    batches[2] = -batches[2]
    journal = Journal.open(tmp_path, IDENTITY, resume=False)
    _, report = calibrate(seeded(Optional), batches, make_spec(**WATCHED), run=run_model,
                          journal=journal)
    assert {layer.name: layer.calls for layer in report.layers} == {
        'stem': 4, 'branch': 3, 'head': 4}
    found = Journal.open(tmp_path, IDENTITY, resume=True)
    assert found.facts['batches_differ'] and len(found.entries) == 3


def test_a_forward_that_calls_other_layers_each_time_is_refused():
    asked = []

    def attempt(count):
        asked.append(count)
        raise BatchesDiffer

    with pytest.raises(RuntimeError, match='the model calls other layers'):
        counting_if_batches_differ(nn.Linear(1, 1), None, Team(), attempt)
    assert asked == [False, True]


@pytest.mark.parametrize(('candidates', 'message'), [
    (lambda problem: [problem.candidate('a'), problem.candidate('a')], "'a' a second time"),
    (lambda problem: [problem.candidate('layers')], "'layers' is what solving layer by layer"),
    (lambda problem: [UnitCandidate('a', {})], "'a' without a solution for layer 'stem'")])
def test_candidates_that_cannot_be_told_apart_are_refused(candidates, message, residual_net,
                                                          images, make_spec, run_model,
                                                          monkeypatch):
    monkeypatch.setitem(WATCHER, 'solve', candidates)
    model = residual_net()
    with pytest.raises(ValueError, match=message):
        calibrate(model, images(), make_spec(**WATCHED), run=run_model)
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())


def test_random_numbers_of_a_step_depend_on_unit_and_step_alone(residual_net, images, make_spec,
                                                                run_model, monkeypatch):
    drawn = []

    def draw(problem):
        drawn.append([torch.rand(2, generator=problem.generator(step)).tolist()
                      for step in (0, 1, 0)])
        return ()

    monkeypatch.setitem(WATCHER, 'solve', draw)
    calibrate(residual_net(), images(), make_spec(**WATCHED), run=run_model)
    assert all(one == again != other for one, other, again in drawn)
    assert len({str(steps) for steps in drawn}) == len(drawn)


def test_the_toy_method_is_short():
    import inspect
    assert len(inspect.getsource(LearnedScale).splitlines()) <= 40
