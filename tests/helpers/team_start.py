"""Starts the processes of ``test_team.py`` by forks of one that has imported and compiled all.

What a process spends on imports and on its first calibration is several times what most teams
compute.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]


def start(task, folder, size, names=()):
    """Starts a team: ``team_process.py`` says what a task is, and what it does with ``names``."""
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['team_warm'])
    path = os.pathsep.join(filter(None, (str(ROOT), str(HELPERS), os.environ.get('PYTHONPATH'))))
    with patch.dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'):
        forkserver.ensure_running()
    team = [processes.Process(target=join, args=(task, folder, rank, size, names))
            for rank in range(size)]
    for process in team:
        process.start()
    return team


def join(task, folder, rank, size, names):
    """What one process does; errors go to a file of its own."""
    os.dup2(os.open(folder / f'errors {rank}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    from team_warm import team_process

    team_process.join(task, folder, rank, size, names)
