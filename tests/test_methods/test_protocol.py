"""Methods of each kind in a few lines, by the public protocol alone, and what becomes of them."""

from dataclasses import dataclass

import pytest
import torch

from mmbitsplit.calibration import METHODS, Method, build_method, calibrate, register_method
from mmbitsplit.solving import statistics
from mmbitsplit.structures import RowStatistics, WeightSolution


@pytest.fixture
def registered():
    """Makes methods known for a test."""
    before = dict(METHODS)
    yield register_method
    METHODS.clear()
    METHODS.update(before)


def rounded(weight, scale, num_bits):
    """Codes (G, M, N) of a weight at scales (G, M)."""
    most = 2 ** (num_bits - 1) - 1
    return (weight / scale.unsqueeze(-1)).round().clamp(-most, most)


def largest(weight, num_bits):
    """Scales (G, M) that reach the largest weight of a channel."""
    return weight.abs().amax(-1).clamp_min(1e-12) / (2 ** (num_bits - 1) - 1)


@dataclass(frozen=True)
class FittedScale(Method):
    """A layer method from sums: rounds, fits the scale to the outputs, and again, ``steps`` times.

    Minimises y_sq - 2 a q.cross + a^2 q^T gram q over the scale a of each channel's codes q.
    """

    steps: int = 3
    guard: bool = True

    def solve(self, statistics, weight, num_bits):
        scale = largest(weight, num_bits)
        for _ in range(self.steps):
            codes = rounded(weight, scale, num_bits)
            energy = ((codes @ statistics.gram) * codes).sum(-1)
            scale = torch.where(energy > 0, (codes * statistics.cross).sum(-1) / energy, scale)
        objective = statistics.y_sq - scale * (codes * statistics.cross).sum(-1)
        return WeightSolution(codes.to(torch.int8), scale, objective)


@dataclass(frozen=True)
class Several(FittedScale):
    """A method of several candidates, first one that is none, then the worst."""

    guard: bool = False

    def candidates(self, statistics, weight, num_bits):
        scale = largest(weight, num_bits)
        nothing = WeightSolution(torch.zeros_like(weight, dtype=torch.int8), scale, scale)
        yield 'no number', WeightSolution(nothing.codes, scale * float('nan'), scale)
        yield 'nothing', nothing
        yield 'fitted', self.solve(statistics, weight, num_bits)


@dataclass(frozen=True)
class FromRows(Method):
    """Asks for the positions themselves, in every layer."""

    needs = ('rows',)

    def solve_rows(self, rows, weight, num_bits):
        assert isinstance(rows, RowStatistics) and rows.x.shape[-1] == rows.count > 0
        assert rows.y.shape[:2] == weight.shape[:2] and rows.x.shape[1] == weight.shape[2]
        return build_method(dict(type='MSE')).round(weight, num_bits)


def run_with(model, images, make_spec, run_model, **method):
    spec = make_spec(weight=dict(num_bits=3), activation=dict(num_bits=8, mode='per_tensor'),
                     method=method)
    return calibrate(model, images(), spec, run=run_model)[1]


def test_a_method_from_sums_is_judged_beside_rounding(registered, residual_net, images, make_spec,
                                                      run_model):
    registered(FittedScale)
    report = run_with(residual_net(), images, make_spec, run_model, type='FittedScale')
    for row in report.layers:
        assert row.candidates.keys() == {'solver', 'rounding'}
        assert row.error == min(row.candidates.values()) <= row.error_rounding
        assert row.candidates['rounding'] == row.error_rounding
        assert row.guard_taken == (row.candidates['solver'] > row.error_rounding)
    assert not all(row.guard_taken for row in report.layers)


def test_the_candidate_of_least_error_is_installed(registered, residual_net, images, make_spec,
                                                   run_model, assert_same_state):
    """The solver alone leaves the same model: neither the first one nor NaN was taken."""
    registered(FittedScale)
    registered(Several)
    models = residual_net(), residual_net()
    several = run_with(models[0], images, make_spec, run_model, type='Several')
    run_with(models[1], images, make_spec, run_model, type='FittedScale', guard=False)
    assert_same_state(*models)
    for row in several.layers:
        errors = row.candidates
        assert list(errors) == ['no number', 'nothing', 'fitted']  # no guard: no rounding
        assert row.error == errors['fitted'] < errors['nothing']
        assert errors['no number'] != errors['no number'] and not row.guard_taken


def test_a_method_is_given_the_positions_it_declares(registered, residual_net, images, make_spec,
                                                     run_model):
    registered(FromRows)
    models = residual_net(), residual_net()
    run_with(models[0], images, make_spec, run_model, type='FromRows')
    run_with(models[1], images, make_spec, run_model, type='MSE')
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs)  # sums have weights in float64, positions float32


def test_a_layer_too_large_for_its_sums_is_refused_before_any_is_solved(
        registered, residual_net, images, make_spec, run_model, monkeypatch):
    registered(FittedScale)
    monkeypatch.setattr(statistics, 'MOST_INPUTS_FOR_GRAM', 30)
    with pytest.raises(ValueError, match=r"'blocks.0.conv1' has 54 .*FittedScale.*no solve_rows"):
        run_with(residual_net(), images, make_spec, run_model, type='FittedScale')


@pytest.mark.parametrize(('declared', 'message'), [
    (dict(needs='sums'), "needs='sums' is not supported; it must be a tuple of 'sums', 'rows'"),
    (dict(needs=('sums', 'outputs')), "'outputs'.*'unit_io', 'importance', 'model_loss'"),
    (dict(solves='model'), "solves='model' is not supported; it must be 'layer' or 'unit'"),
    (dict(granularity='row'), "granularity='row' is not supported; it must be 'layer', 'block', "),
    (dict(needs=('unit_io',)), "'unit_io', which is there for methods of solves='unit'"),
    (dict(needs=('unit_io',), solves='unit'), "not enough for solves='unit'.*'sums' or 'rows'"),
    (dict(needs=('sums',), solves='unit'), "not enough for solves='unit'.*'unit_io'"),
    (dict(needs=('unit_io', 'model_loss'), solves='unit'), "'model_loss'.*solves='layer' alone"),
])
def test_what_calibration_does_not_know_is_refused(declared, message, registered):
    registered(type('Odd', (FittedScale,), declared))
    with pytest.raises(ValueError, match=message):
        build_method(dict(type='Odd'))


@pytest.mark.parametrize(('names', 'message'), [
    ((), 'nothing'), (('a', 'a'), "'a', 'a'"), (('rounding',), 'plain rounding is a candidate')])
def test_candidates_need_names_of_their_own(names, message, registered, residual_net, images,
                                            make_spec, run_model):
    def candidates(self, statistics, weight, num_bits):
        for name in names:
            yield name, self.solve(statistics, weight, num_bits)

    registered(type('Named', (FittedScale,), dict(candidates=candidates)))
    with pytest.raises(ValueError, match=message):
        run_with(residual_net(), images, make_spec, run_model, type='Named')


def test_flags_follow_from_what_is_declared_and_old_ones_are_heard():
    assert not build_method(dict(type='MSE')).looks_at_images
    assert build_method(dict(type='MSE', bias_correction=True)).looks_at_images
    assert build_method(dict(type='LAPQ')).refines and not FittedScale().refines
    old = type('Old', (FittedScale,), dict(looks_at_images=False, refines=True))()
    assert old.refines and not old.looks_at_images
