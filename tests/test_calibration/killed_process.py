"""One process of ``test_killed.py``; run as ``killed_process.py FOLDER STEP``.

Calibrates with a toy method that solves units, and is killed in the middle of the second block: at
a step of its learning, with or without its state on the disk, or between the entries of its layers.
"""

import os
import signal
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / 'helpers'))  # the models of the tests
import unit_methods  # noqa: E402
from calibration_nets import ResidualNet, _images, _seeded, _spec, call  # noqa: E402

from mmbitsplit.calibration import Journal, calibrate  # noqa: E402
from mmbitsplit.calibration.journal import unit_state  # noqa: E402
from mmbitsplit.methods.unit_problem import UnitProblem  # noqa: E402

REQUEST = dict(weight=dict(num_bits=2), first_last=dict(weight_bits=2),
               method=dict(type='LearnedScale', steps=12))
SAVED = {**REQUEST, 'method': dict(type='SavedScale', steps=12)}
STAGES = {**REQUEST, 'method': dict(type='BRECQ', iterations=12, input_iterations=12)}
REQUESTS = {'step': REQUEST, 'entries': REQUEST, 'states': SAVED, 'stages': STAGES}
IDENTITY = {'weights': 'those of this test'}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step_of_learning() -> None:
    """Dies when the second block is half learnt."""
    generator = UnitProblem.generator

    def dying(problem, step):
        if 'blocks.1.conv1' in problem.layers and step == 6:
            die()
        return generator(problem, step)

    UnitProblem.generator = dying


def in_the_second_stage() -> None:
    """Dies when the second block's roundings are learnt and its input scales half."""
    unit_state.EVERY = 0.0
    generator, seen = UnitProblem.generator, []

    def dying(problem, step):
        if 'blocks.1.conv1' in problem.layers and step == 6:
            seen.append(step)
            if len(seen) == 2:
                die()
        return generator(problem, step)

    UnitProblem.generator = dying


def after_states_were_kept() -> None:
    """Dies when the second block is half learnt, and each step was kept."""
    unit_state.EVERY = 0.0
    in_a_step_of_learning()


def between_entries() -> None:
    """Dies when the second block's first layer is written and the second is not."""
    append = Journal.append

    def dying(journal, entry):
        if entry.name == 'blocks.1.conv2':
            die()
        append(journal, entry)

    Journal.append = dying


if __name__ == '__main__':
    torch.set_num_threads(1)
    unit_methods.register()
    {'step': in_a_step_of_learning, 'entries': between_entries,
     'states': after_states_were_kept, 'stages': in_the_second_stage}[sys.argv[2]]()
    calibrate(_seeded(ResidualNet), _images(), _spec(**REQUESTS[sys.argv[2]]), run=call,
              journal=Journal.open(Path(sys.argv[1]), IDENTITY, resume=False))
