"""A process that is killed in the middle of a unit; the next one ends in the same codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmbitsplit.calibration import Journal, calibrate
from mmbitsplit.calibration.journal.unit_state import UnitState

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from killed_process import IDENTITY, REQUEST, SAVED, STAGES  # noqa: E402
from unit_methods import STEPS, known  # noqa: E402, F401

PROJECT = HERE.parents[1]


def killed(folder, where):
    """Runs a process that is killed."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(
        filter(None, (str(PROJECT), os.environ.get('PYTHONPATH'))))}
    done = subprocess.run([sys.executable, HERE / 'killed_process.py', folder, where],
                          capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.mark.slow
def test_killed_in_the_middle_of_learning_it_goes_on_at_the_step_that_was_kept(
        residual_net, images, make_spec, run_model, assert_same_state, tmp_path):
    spec, wanted, again = make_spec(**SAVED), residual_net(), residual_net()
    killed(tmp_path, 'states')
    calibrate(wanted, images(), spec, run=run_model)
    STEPS.clear()
    calibrate(again, images(), spec, run=run_model,
              journal=Journal.open(tmp_path, IDENTITY, resume=True))
    assert [step for unit, step in STEPS if unit == 'blocks.1'] == [*range(6, 12)]
    assert_same_state(again, wanted)
    assert not (tmp_path / 'unit.state').exists()


@pytest.mark.slow
def test_killed_in_a_later_stage_it_goes_on_there(
        residual_net, images, make_spec, run_model, assert_same_state, tmp_path, monkeypatch):
    spec, wanted, again, load = make_spec(**STAGES), residual_net(), residual_net(), UnitState.load
    killed(tmp_path, 'stages')
    _, whole = calibrate(wanted, images(), spec, run=run_model)
    found = []
    monkeypatch.setattr(UnitState, 'load', lambda state: found.append(
        (state.unit, load(state))) or found[-1][1])
    calibrate(again, images(), spec, run=run_model,
              journal=Journal.open(tmp_path, IDENTITY, resume=True))
    assert {unit for unit, state in found if state is not None} == {'blocks.1'}
    assert [*dict(found)['blocks.1']['finished']] == ['weights']
    assert 'learned rounding and input scales' in {layer.unit_taken for layer in whole.layers}
    assert_same_state(again, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(('where', 'written'), [('step', 3), ('entries', 4)])
def test_killed_in_the_middle_of_a_unit_it_goes_on_to_the_same_codes(
        where, written, residual_net, images, make_spec, run_model, assert_same_state,
        tmp_path):
    spec, wanted, again = make_spec(**REQUEST), residual_net(), residual_net()
    killed(tmp_path, where)
    _, whole = calibrate(wanted, images(), spec, run=run_model)
    journal = Journal.open(tmp_path, IDENTITY, resume=True)
    assert len(journal.entries) == written  # the stem, the first block, one layer of the second
    _, report = calibrate(again, images(), spec, run=run_model, journal=journal)
    assert_same_state(again, wanted)
    assert report.calibration['layers_taken_over'] == 3  # a unit that is not whole is dropped
    assert [layer.unit_taken for layer in report.layers] == [
        layer.unit_taken for layer in whole.layers]
