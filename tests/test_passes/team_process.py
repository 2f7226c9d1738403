"""One process of ``test_team.py``; ``helpers/team_start.py`` starts it."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mmbitsplit.calibration import Journal, ProcessTeam, ReplayPoint, Team, calibrate, unit_solver
from mmbitsplit.calibration.journal import unit_state
from mmbitsplit.methods.unit_problem import UnitProblem
from mmbitsplit.solving import statistics

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / 'helpers'))  # the models of the tests
from attention_nets import Encoder  # noqa: E402
from calibration_nets import ResidualNet, _images, _seeded, _spec, call  # noqa: E402
from own_classes import OwnClasses  # noqa: E402
from pyramids import Detector, LevelHead  # noqa: E402
from test_lockstep import Optional, TwoStage  # noqa: E402
from unit_methods import STEPS, WATCHER, register  # noqa: E402

register()

TIMEOUT = timedelta(seconds=300)  # two processes work while the third waits
IN_TIME = 5.0  # seconds that a collective may take, in one of the tasks
DIES_AT = 3  # layers solved before one process dies, or a calibration is interrupted


class Smooth(nn.Module):
    """Inputs that reach below zero."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        return self.layers(x)


class Separable(nn.Module):
    """Depthwise and grouped layers: with one output channel a group there are no shares."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU6(),
            nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))

    def forward(self, x):
        return self.layers(x)


class Adaptive(LevelHead):
    """As many levels as the image is large enough for."""

    def forward(self, levels):
        return super().forward([level for level in levels if level.shape[-1] >= 3])


@dataclass(frozen=True)
class Case:
    """A calibration.

    Args:
        make: Makes the model.
        batches: All of them.
        spec: Changes of the request.
        most_for_gram: Inputs above which a layer is solved from its rows.
        unit_bytes: Of inputs and outputs of a unit.
        replay: Name of a method of the model to replay.
    """

    make: Callable[[], nn.Module]
    batches: Sequence[Tensor] = field(default_factory=lambda: _images(7))
    spec: dict[str, Any] = field(default_factory=dict)
    most_for_gram: int = 8192
    unit_bytes: int = 1 << 30
    replay: str | None = None

    def run(self, team: Team, **more: Any) -> tuple[nn.Module, Any]:
        """Calibrates on the team's share of the batches."""
        model = _seeded(self.make)
        points = [ReplayPoint(model, self.replay)] if self.replay else []
        statistics.MOST_INPUTS_FOR_GRAM = self.most_for_gram
        unit_solver.UNIT_BYTES = self.unit_bytes
        mine = [self.batches[number].clone() for number in team.batches(len(self.batches))]
        _, report = calibrate(model, mine, _spec(**self.spec), replay_points=points, team=team,
                              **{'run': call, **more})
        return model, report


def request(weight: int, activation: int | None, mode: str = 'ecaq', **more: Any) -> dict:
    return dict(weight=dict(num_bits=weight),
                activation=dict(num_bits=activation, mode=mode, **more))


def bright(count: int, *numbers: int) -> list[Tensor]:
    """Batches of which those with the numbers are bright."""
    return [batch.abs() if number in numbers else -batch.abs()
            for number, batch in enumerate(_images(count))]


def sizes(*values: int) -> list[Tensor]:
    return [_images(1, size=size, seed=number)[0] for number, size in enumerate(values)]


ROUNDED = dict(type='RoundToNearest', bias_correction=True)
PUBLISHED = dict(type='BitSplit', init='mse', polish=False, bias_correction=False, guard=False)
# The loss is a sum of fractions, whose last bits depend on the number of processes: with one norm
# nothing hangs on them.
REFINED = dict(type='LAPQ', norms=(2.0,), max_iterations=0)
WATCHED = dict(request(3, 4), method=dict(type='Watched'))
LEARNED = dict(request(2, 4), method=dict(type='LearnedScale', steps=30))
CASES = {
    'W4A8': Case(ResidualNet, spec=request(4, 8)),
    'W2A4': Case(ResidualNet, spec=request(2, 4)),
    'W3A3': Case(ResidualNet, spec=request(3, 3)),
    'per channel': Case(ResidualNet, spec=request(4, 4, 'per_channel')),
    'weights only': Case(ResidualNet, spec=request(3, None)),
    'own classes': Case(OwnClasses, spec=request(4, 8)),
    'asymmetric': Case(Smooth, spec=request(4, 6, symmetry='asymmetric')),
    'rounded': Case(ResidualNet, spec=dict(method=ROUNDED)),
    'as published': Case(ResidualNet, spec=dict(request(3, 4), method=PUBLISHED)),
    'shared head': Case(lambda: Detector(LevelHead()), sizes(8, 12, 8, 12, 8)),
    'other levels': Case(lambda: Detector(Adaptive()), sizes(8, 12, 16, 12, 8)),
    'tuned': Case(ResidualNet, spec=dict(
        request(2, 3), method=dict(type='MSE'), first_last=dict(weight_bits=2),
        tuning=dict(type='OutputTuning', steps=12, learning_rate=2e-3, batch_size=3,
                    codes=True, inner=1.0, judge_every=2))),
    'renormalised': Case(ResidualNet, spec=dict(
        request(2, 3), method=dict(type='MSE'), tuning=[
            dict(type='NormReestimation', guard=False), dict(type='BiasTuning', steps=4),
            dict(type='NormReestimation', guard=False, momentum=0.1)])),
    'renormalised, shared': Case(lambda: Detector(LevelHead()), sizes(8, 12, 8, 12, 8), dict(
        request(3, 4), method=dict(type='MSE'),
        tuning=dict(type='NormReestimation', guard=False, target='float'))),
    'refined': Case(ResidualNet, spec=dict(request(3, 4, 'per_tensor'), method=REFINED)),
    'groups': Case(Separable, spec=request(3, 4)),
    'reached by the first': Case(Optional, bright(7, 0, 6)),
    'reached by the last': Case(Optional, bright(6, 5)),
    'odd counts': Case(ResidualNet, [batch[:1, :, :5, :5] for batch in _images(9)],
                       request(3, 3)),
    'a single batch': Case(ResidualNet, _images(1)),
    'two batches': Case(ResidualNet, _images(2)),
    'nothing held out': Case(ResidualNet, spec=dict(calibration=dict(holdout=0))),
    'chosen rows': Case(lambda: TwoStage(None), spec=request(2, 2), replay='select'),
    'from rows': Case(ResidualNet, spec=request(3, 4), most_for_gram=20),
    'from rows, real inputs': Case(ResidualNet, spec=request(3, 4, 'per_channel'),
                                   most_for_gram=20),
    'from rows, rounded': Case(ResidualNet, spec=dict(method=ROUNDED), most_for_gram=20),
    'by importance': Case(ResidualNet, _images(7, size=16), dict(request(3, 4), calibration=dict(
        rows_per_layer=64, sampling='importance'))),
    'units': Case(ResidualNet, spec=LEARNED),
    'channels by importance': Case(ResidualNet, spec=dict(request(3, 4), method=dict(
        type='BRECQ', iterations=20, input_iterations=5, importance='fisher'))),
    'units in crops': Case(ResidualNet, _images(5, size=40), LEARNED, unit_bytes=60_000),
    'units on part of the rows': Case(lambda: TwoStage(None), spec=LEARNED, replay='select',
                                      unit_bytes=2_000),
    'units of two heads': Case(lambda: Detector(LevelHead(), LevelHead()),
                               sizes(8, 12, 8, 12, 8), LEARNED),
    'attention': Case(lambda: Encoder(2, masked=True), spec=request(4, 4)),
    'units with products': Case(Encoder, spec=LEARNED),
    'QDrop': Case(ResidualNet, spec=dict(request(3, 4), method=dict(type='QDrop', iterations=20))),
    'units that the last reaches': Case(Optional, bright(6, 5), LEARNED),
    'AdaRound': Case(ResidualNet, spec=dict(request(2, 4, 'per_tensor'),
                                            method=dict(type='AdaRound', iterations=20))),
}
SAVED = Case(ResidualNet, spec=dict(request(2, 4), method=dict(type='SavedScale', steps=12)))
SAVED_IDENTITY = {'case': 'saved'}
OF_UNITS = ('units', 'units in crops', 'units on part of the rows', 'units of two heads',
            'units that the last reaches', 'AdaRound')
# Cases that three processes work on, too; all others two.
OF_THREE = ('W3A3', 'shared head', 'reached by the last', 'odd counts', 'two batches',
            'from rows', 'by importance', 'units of two heads', 'units that the last reaches')


def save(path: Path, model: nn.Module, report: Any) -> None:
    codes = {name: module.codes for name, module in model.named_modules()
             if hasattr(module, 'codes')}
    torch.save({'state': model.state_dict(), 'codes': codes,
                'layers': [asdict(layer) for layer in report.layers],
                'calibration': report.calibration}, path)


def calibrations(folder: Path, rank: int, size: int, names: Sequence[str]) -> None:
    """Three processes: two of them as a team, the third alone, then all as a team."""
    pair = distributed.new_group([0, 1], timeout=TIMEOUT)
    for name in names:
        if rank < 2:
            save(folder / f'{name} 2 {rank}.pt', *CASES[name].run(ProcessTeam(pair)))
        else:
            save(folder / f'{name} 1 0.pt', *CASES[name].run(Team()))
    for name in names:
        if name in OF_THREE:
            save(folder / f'{name} 3 {rank}.pt', *CASES[name].run(ProcessTeam()))


class Interrupted(Exception):
    pass


def goes_on_alone(folder: Path, rank: int, size: int) -> None:
    """One process goes on where two were."""
    journal = Journal.open(folder / 'journal', SAVED_IDENTITY, resume=True)
    save(folder / 'alone.pt', *SAVED.run(Team(), journal=journal))
    (folder / 'steps').write_text(repr([step for unit, step in STEPS if unit == 'blocks.1']))
    save(folder / 'whole.pt', *SAVED.run(Team()))


def resumed(folder: Path, rank: int, size: int) -> None:
    """The first process alone has a journal; it is interrupted, and all go on from there."""
    case, identity = CASES['W3A3'], {'case': 'W3A3'}

    def interrupt(step):
        if step.stage == 'layers' and step.done == DIES_AT:
            raise Interrupted

    def journal(resume):
        return Journal.open(folder / 'journal', identity, resume=resume) if rank == 0 else None

    try:
        case.run(ProcessTeam(), journal=journal(False), progress=interrupt)
    except Interrupted:
        distributed.barrier()
    taken = journal(True)
    if rank == 0:
        assert len(taken.entries) == DIES_AT
    save(folder / f'resumed {rank}.pt', *case.run(ProcessTeam(), journal=taken))
    save(folder / f'whole {rank}.pt', *case.run(ProcessTeam()))
    # All layers taken over: nothing is run but the look at the model.
    save(folder / f'again {rank}.pt', *case.run(ProcessTeam(), journal=journal(True)))


def dies(folder: Path, rank: int, size: int) -> None:
    """The last process ends without a word between two layers."""
    def progress(step):
        if rank == size - 1 and step.stage == 'layers' and step.done == DIES_AT:
            os._exit(9)

    CASES['W3A3'].run(ProcessTeam(), progress=progress)


def fails(folder: Path, rank: int, size: int) -> None:
    """The last process's model raises in its second pass."""
    runs = []

    def run(model, batch):
        runs.append(batch)
        if rank == size - 1 and len(runs) > 6:
            raise KeyError('the model fails')
        return model(batch)

    CASES['W3A3'].run(ProcessTeam(), run=run)


def learns_long(folder: Path, rank: int, size: int) -> None:
    """The first process learns a unit for longer than a collective may take."""
    pair = ProcessTeam(distributed.new_group([0, 1], timeout=timedelta(seconds=IN_TIME)))

    def solve(problem):
        if problem.unit.name == 'stem':
            time.sleep(1.4 * IN_TIME)
        return ()

    WATCHER['solve'] = solve
    save(folder / f'long {rank}.pt', *Case(ResidualNet, spec=WATCHED).run(pair))


def dies_waiting(folder: Path, rank: int, size: int) -> None:
    """The last process ends without a word while it waits for the first to learn."""
    def solve(problem):
        for step in range(1200):
            time.sleep(0.05)
            problem.progress(step, 1200)
        return ()

    def progress(step):
        if rank == size - 1 and step.stage == 'unit':
            os._exit(9)

    WATCHER['solve'] = solve
    Case(ResidualNet, spec=WATCHED).run(ProcessTeam(), progress=progress)


def dies_learning(folder: Path, rank: int, size: int) -> None:
    """The first process ends without a word in the middle of a unit, whose state it has kept."""
    unit_state.EVERY = 0.0
    generator = UnitProblem.generator

    def dying(problem, step):
        if problem.unit.name == 'blocks.1' and step == 6:
            os._exit(9)
        return generator(problem, step)

    UnitProblem.generator = dying
    journal = Journal.open(folder / 'journal', SAVED_IDENTITY, resume=False) if rank == 0 else None
    SAVED.run(ProcessTeam(), journal=journal)


def refuses(folder: Path, rank: int, size: int) -> None:
    """What the first process learns is refused."""
    def solve(problem):
        raise ValueError(f'unit {problem.unit.name} cannot be learned')

    WATCHER['solve'] = solve
    Case(ResidualNet, spec=WATCHED).run(ProcessTeam())


TASKS = {task.__name__: task for task in (
    calibrations, resumed, dies, fails, learns_long, goes_on_alone, dies_waiting, dies_learning,
    refuses)}


def join(task: str, folder: Path, rank: int, size: int, names: Sequence[str]) -> None:
    """One process of a team; ``names``: of the cases that are calibrated."""
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                                   world_size=size, timeout=TIMEOUT)
    TASKS[task](folder, rank, size, *([names] if names else []))
