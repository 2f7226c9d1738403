"""An interrupted calibration goes on from its journal and ends as if nothing had happened."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pyramids import LevelHead
from torch import nn

from mmbitsplit.calibration import Journal, Progress, ReplayPoint, calibrate, layer_solver
from mmbitsplit.structures import QuantizationReport

pytestmark = pytest.mark.slow

IDENTITY = {'weights': 'those of this test'}


class Interrupted(Exception):
    """Stands in for ``kill -9``."""


class SharedHead(nn.Module):
    """Two levels of different sizes; a head of two towers that both levels share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = LevelHead()
        self.end = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        large = torch.relu(self.stem(x))
        small = torch.relu(self.down(large))
        return self.head([large, small]), self.end(small)


class FeedsItself(nn.Module):
    """A layer that is called on its own output."""

    def __init__(self):
        super().__init__()
        self.stem, self.cell = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.end = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = torch.tanh(self.cell(x))
        return self.end(x)


class Selects(nn.Module):
    """Which positions reach the second stage depends on the first stage's output."""

    def __init__(self):
        super().__init__()
        self.stem, self.score = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.hidden, self.end = nn.Linear(4, 8), nn.Linear(8, 2)

    def select(self, score):
        return score.flatten(1).topk(10).indices

    def forward(self, x):
        x = torch.relu(self.stem(x))
        chosen = self.select(self.score(x))
        rows = x.flatten(2).mT.gather(1, chosen[..., None].expand(-1, -1, 4))
        return self.end(torch.relu(self.hidden(rows)))


@dataclass
class Result:
    """What came of a calibration.

    Args:
        model: Quantized.
        report: Of it.
        journal: That it used.
        solved: Names of the layers that were really solved.
        steps: What progress was told.
        forwards: How often the model ran.
    """

    model: nn.Module
    report: QuantizationReport
    journal: Journal
    solved: list[str]
    steps: list[Progress]
    forwards: int


@pytest.fixture
def go(images, make_spec, run_model, monkeypatch):
    """Calibrates a freshly made model with a journal; ``stop`` says after which step it ends."""
    solved: list[str] = []
    solve_layer = layer_solver.solve_layer

    def counting(layer, plan, *args, **options):
        solved.append(plan.name)
        return solve_layer(layer, plan, *args, **options)

    monkeypatch.setattr(layer_solver, 'solve_layer', counting)

    def go(make: Callable[[], nn.Module], folder: Path, resume: bool = True,
           stop: tuple[str, int] | None = None,
           points: Callable[[nn.Module], list[ReplayPoint]] = lambda model: [],
           spec: dict[str, Any] | None = None) -> Result:
        batches = [*images(2, size=8), *images(2, size=12)]
        model, steps, forwards = make(), [], []

        def progress(step: Progress) -> None:
            steps.append(step)
            if stop == (step.stage, step.done):
                raise Interrupted

        def run(model: nn.Module, batch: Any) -> Any:
            forwards.append(1)
            return run_model(model, batch)

        journal = Journal.open(folder, IDENTITY, resume=resume)
        solved.clear()
        _, report = calibrate(model, batches, make_spec(**(spec or {})), run=run, progress=progress,
                              replay_points=points(model), journal=journal)
        return Result(model, report, journal, copy.copy(solved), steps, len(forwards))
    return go


@pytest.fixture
def assert_same(assert_same_state):
    """Two results are equal in every tensor and in all but the seconds of every row."""
    def assert_same(ours: Result, theirs: Result) -> None:
        assert_same_state(ours.model, theirs.model)
        rows, wanted = rows_of(ours), rows_of(theirs)
        assert len(ours.report.layers) == len(rows) and rows == wanted
        assert list(rows) == list(wanted)  # of the plan, whatever order they were solved in
        assert ours.report.folded_batch_norms == theirs.report.folded_batch_norms
        assert ours.report.kept_float == theirs.report.kept_float
    return assert_same


def rows_of(result: Result) -> dict[str, dict[str, Any]]:
    return {layer.name: {**dataclasses.asdict(layer), 'seconds': None}
            for layer in result.report.layers}


def interrupt(go: Callable, make: Callable[[], nn.Module], folder: Path, *stop: Any,
              **options: Any) -> None:
    with pytest.raises(Interrupted):
        go(make, folder, stop=stop, **options)


def assert_resumes(go, assert_same, make, folder: Path, layers: Iterable[int],
                   **options: Any) -> None:
    """Interrupts in the float pass and after each of those numbers of layers, and resumes."""
    wanted = go(make, folder / 'whole', **options)
    assert wanted.report.calibration['layers_taken_over'] == 0
    for stop in [('float', 1), ('float', 4), *(('layers', number) for number in layers)]:
        where = folder / '{}{}'.format(*stop)
        interrupt(go, make, where, *stop, **options)
        resumed = go(make, where, **options)
        taken_over = stop[1] if stop[0] == 'layers' else 0
        assert_same(resumed, wanted)
        assert resumed.report.calibration['layers_taken_over'] == taken_over, stop
        assert sorted(resumed.solved) == sorted(wanted.solved[taken_over:]), stop
        assert resumed.journal.problems == []


def test_a_residual_net_interrupted_after_any_layer(go, assert_same, residual_net, tmp_path):
    assert_resumes(go, assert_same, residual_net, tmp_path, range(1, 8))


def test_a_shared_head_interrupted_after_any_layer(go, assert_same, seeded, tmp_path):
    # What can be solved next differs where the towers stand side by side: no fixed order.
    assert_resumes(go, assert_same, lambda: seeded(SharedHead), tmp_path, range(1, 10))


def test_a_layer_that_feeds_itself(go, assert_same, seeded, tmp_path):
    assert_resumes(go, assert_same, lambda: seeded(FeedsItself), tmp_path, range(1, 4))


def test_recorded_results_are_those_of_the_float_model_again(go, assert_same, seeded, tmp_path):
    assert_resumes(go, assert_same, lambda: seeded(Selects), tmp_path, range(1, 5),
                   points=lambda model: [ReplayPoint(model, 'select')])


def test_quantized_outputs_are_taken_over(go, assert_same, residual_net, tmp_path):
    assert_resumes(go, assert_same, residual_net, tmp_path, range(1, 8),
                   spec=dict(activation=dict(placement='deploy')))
    whole = go(residual_net, tmp_path / 'whole')
    assert [entry.name for entry in whole.journal.entries
            if entry.solution.output_qparams is not None] == ['blocks.0.conv2', 'blocks.1.conv2']


def test_streams_are_found_again_as_they_were(go, assert_same, residual_net, tmp_path):
    assert_resumes(go, assert_same, residual_net, tmp_path, range(1, 8),
                   spec=dict(activation=dict(placement='qdrop', num_bits=3)))


def test_interrupted_again_and_again(go, assert_same, seeded, tmp_path):
    def make():
        return seeded(SharedHead)

    wanted = go(make, tmp_path / 'whole')
    again = tmp_path / 'again'
    for stop in (('float', 2), ('layers', 1), ('layers', 4), ('float', 3), ('layers', 5),
                 ('layers', 9)):
        interrupt(go, make, again, *stop)
    resumed = go(make, again)
    assert_same(resumed, wanted)
    assert resumed.report.calibration['layers_taken_over'] == 9 and resumed.solved == []


def test_progress_is_told_of_layers_taken_over(go, residual_net, tmp_path):
    interrupt(go, residual_net, tmp_path, 'layers', 3)
    resumed = go(residual_net, tmp_path)
    layers = [step for step in resumed.steps if step.stage == 'layers']
    assert [step.done for step in layers] == list(range(1, 8))
    assert {step.total for step in layers} == {7}
    assert [step.layer for step in layers] == resumed.report.layers


def test_with_all_layers_there_nothing_is_computed(go, assert_same, residual_net, tmp_path):
    wanted = go(residual_net, tmp_path)
    resumed = go(residual_net, tmp_path)
    assert_same(resumed, wanted)
    assert resumed.solved == [] and resumed.report.calibration['layers_taken_over'] == 7
    assert resumed.forwards == 4  # what multiplies, how values flow, that surgery changes nothing
    assert not [step for step in resumed.steps if step.stage == 'float']
    assert resumed.report.seconds['float_forward'] == wanted.report.seconds['float_forward'] > 0
    assert resumed.report.seconds['solve'] == 0


@pytest.mark.parametrize('damage', [
    lambda data: data[:len(data) // 2],
    lambda data: bytes([*data[:-100], data[-100] ^ 1, *data[-99:]]), lambda data: b''])
@pytest.mark.parametrize('damaged', [0, 2, 6])
def test_a_damaged_layer_is_solved_again(damaged, damage, go, assert_same, residual_net,
                                         tmp_path):
    wanted = go(residual_net, tmp_path)
    path = tmp_path / f'{damaged:04d}.layer'
    path.write_bytes(damage(path.read_bytes()))
    resumed = go(residual_net, tmp_path)
    assert_same(resumed, wanted)
    assert resumed.solved == wanted.solved[damaged:]
    assert resumed.report.calibration['layers_taken_over'] == damaged
    problem, = resumed.journal.problems
    assert str(path) in problem and 'solved again' in problem
    after = go(residual_net, tmp_path)
    assert after.solved == [] and after.journal.problems == []


def test_interrupted_before_the_entry_was_written(go, assert_same, residual_net, tmp_path,
                                                  monkeypatch):
    wanted = go(residual_net, tmp_path / 'whole')
    append = Journal.append

    def interrupted(self, entry):
        if entry.name == wanted.solved[4]:
            raise Interrupted
        append(self, entry)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Journal, 'append', interrupted)
        go(residual_net, tmp_path / 'cut')
    resumed = go(residual_net, tmp_path / 'cut')
    assert_same(resumed, wanted)
    assert resumed.solved == wanted.solved[4:]


def test_without_resume_everything_is_solved(go, assert_same, residual_net, tmp_path):
    wanted = go(residual_net, tmp_path)
    anew = go(residual_net, tmp_path, resume=False)
    assert_same(anew, wanted)
    assert anew.solved == wanted.solved and anew.forwards == wanted.forwards
