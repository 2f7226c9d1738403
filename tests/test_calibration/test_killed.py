"""A process that is killed in the middle of a unit; the next one ends in the same codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmbitsplit.calibration import Journal, calibrate

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from killed_process import IDENTITY, REQUEST  # noqa: E402
from unit_methods import known  # noqa: E402, F401

PROJECT = HERE.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(('where', 'written'), [('step', 3), ('entries', 4)])
def test_killed_in_the_middle_of_a_unit_it_goes_on_to_the_same_codes(
        where, written, residual_net, images, make_spec, run_model, assert_same_state,
        tmp_path):
    spec, wanted, again = make_spec(**REQUEST), residual_net(), residual_net()
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(
        filter(None, (str(PROJECT), os.environ.get('PYTHONPATH'))))}
    done = subprocess.run([sys.executable, HERE / 'killed_process.py', tmp_path, where],
                          capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    _, whole = calibrate(wanted, images(), spec, run=run_model)
    journal = Journal.open(tmp_path, IDENTITY, resume=True)
    assert len(journal.entries) == written  # the stem, the first block, one layer of the second
    _, report = calibrate(again, images(), spec, run=run_model, journal=journal)
    assert_same_state(again, wanted)
    assert report.calibration['layers_taken_over'] == 3  # a unit that is not whole is dropped
    assert [layer.unit_taken for layer in report.layers] == [
        layer.unit_taken for layer in whole.layers]
