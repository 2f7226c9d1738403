"""Runs a model on calibration images and solves its layers."""

from mmbitsplit.calibration.calibrate import calibrate
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.layer_solver import Progress
from mmbitsplit.calibration.methods import (
    METHODS,
    Method,
    build_method,
    read_request,
    register_method,
)
from mmbitsplit.calibration.replay import ReplayPoint
from mmbitsplit.calibration.sensitivity import Sensitivity, Trial
from mmbitsplit.calibration.team import ProcessTeam, Team, current_team

__all__ = ['METHODS', 'Journal', 'Method', 'ProcessTeam', 'Progress', 'ReplayPoint', 'Sensitivity',
           'Team', 'Trial', 'build_method', 'calibrate', 'current_team', 'read_request',
           'register_method']
