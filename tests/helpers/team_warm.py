"""Imports what a process of ``test_team.py`` runs, and all that its first calibration brings in."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'test_passes'))
import team_process  # noqa: E402

torch.set_num_threads(1)
with torch.random.fork_rng():
    team_process.CASES['W3A3'].run(team_process.Team())
