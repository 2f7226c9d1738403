"""Budgets that no plan keeps are refused before anything is solved, with what is possible."""

import pytest

from mmbitsplit.calibration import Journal
from mmbitsplit.calibration.budget import calibrate_within
from mmbitsplit.calibration.budget_check import check_budget
from mmbitsplit.calibration.plan_loss import Given, PlanLoss
from mmbitsplit.planning.latency_table import FLOAT_BITS, latencies_text
from mmbitsplit.planning.width_solutions import WidthSolver

LAYERS = ['stem', *(f'blocks.{block}.conv{conv}' for block in (0, 1) for conv in (1, 2)),
          'classify', 'regress']


@pytest.fixture
def table(tmp_path):
    """A layer takes a microsecond a bit."""
    path = tmp_path / 'table.csv'
    path.write_text(latencies_text((name, bits, inputs, bits) for name in LAYERS
                                   for bits in (2, 4, 8) for inputs in (8, FLOAT_BITS)))
    return str(path)


@pytest.fixture
def given(residual_net, images, run_model):
    return Given(model=residual_net(), batches=images(8), run=run_model)


@pytest.mark.parametrize(('limits', 'told'), [
    (dict(weight_bits=3), 'weight_bits from 4 to 8'), (dict(bytes='1kB'), r'bytes from \d+ to \d+'),
    (dict(bitops=0.3), r'bitops from 0.6\d* to 1\.'),
    (dict(latency=0.5), r'latency from 0.7\d* to 1'),
    (dict(weight_bits=4.1, bitops=0.3), 'weight_bits from 4 to 8, bitops from 0.6')], ids=str)
def test_what_no_plan_keeps_is_refused_at_once(limits, told, given, make_spec, table, monkeypatch,
                                              assert_same_state, residual_net, tmp_path):
    def never(*args, **kwargs):
        raise AssertionError('something is solved or measured')
    monkeypatch.setattr(WidthSolver, 'solve', never)
    monkeypatch.setattr(PlanLoss, 'of', never)
    spec = make_spec(method={'type': 'RoundToNearest'}, budget=dict(
        widths=[4, 8], latency_table=table, **limits))
    with pytest.raises(ValueError, match=f'cannot be kept. Possible with these widths: {told}'):
        calibrate_within(given, spec, journal=Journal.open(tmp_path / 'journal', {}, resume=False))
    assert_same_state(given.model, residual_net())
    assert not (tmp_path / 'journal/widths').exists()


def test_what_some_plan_keeps_is_not_refused(given, make_spec, table, assert_same_state,
                                            residual_net):
    spec = make_spec(budget=dict(weight_bits=3, widths=[2, 4], latency_table=table))
    check_budget(given, spec)
    check_budget(given, spec, [dict(bytes=5000, latency=0.9), dict(bitops=0.55), {}])
    with pytest.raises(ValueError, match='bitops <= 0.1 cannot be kept'):
        check_budget(given, spec, [dict(bitops=0.55), dict(bitops=0.1)])
    assert_same_state(given.model, residual_net())
