"""PTMQ: one rounding for all widths, on features of several widths."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.functional import weight_scale
from mmbitsplit.methods import PTMQ
from mmbitsplit.methods.unit_learning_widths import default_groups, one_width
from mmbitsplit.structures import Widths

FAST = dict(widths=[3, 4, 6, 8], iterations=20, learning_rate=0.02, batch_size=8)


def request(changes=None, **options):
    return read_request({
        'calibration': dict(rows_per_layer=256, holdout=0.25),
        'method': dict(type='PTMQ', **FAST | options), **(changes or {})})


@pytest.fixture
def problems(monkeypatch):
    """Calls ``look(problem)`` with each unit before it is learned; gives the candidates by unit."""
    solve = PTMQ.solve_unit

    def watch(look=lambda problem: None):
        given = {}

        def watched(self, problem):
            look(problem)
            for candidate in solve(self, problem):
                given[problem.unit.name] = candidate
                yield candidate

        monkeypatch.setattr(PTMQ, 'solve_unit', watched)
        return given
    return watch


def test_run(residual_net, images, run_model, problems):
    candidates = problems()
    prepared, report = calibrate(residual_net(), images(), request(), run=run_model)
    for layer in report.layers:
        print(layer.name, layer.unit, layer.unit_errors, layer.unit_taken, layer.notes)
        s = prepared.layers[layer.name].solution()
        print(s.num_bits, [one.num_bits for one in s.narrower], s.qparams and s.qparams.num_bits, [q.num_bits for q in s.narrower_inputs])
    assert 0
