"""Calibrates a model: the way from a request to solved layers."""

from mmbitsplit.calibration.calibrate import calibrate
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.methods import METHODS, Method, build_method, read_request, register_method
from mmbitsplit.passes.replay import ReplayPoint
from mmbitsplit.passes.team import ProcessTeam, Team, current_team
from mmbitsplit.planning.sensitivity import Sensitivity, Trial

__all__ = ['METHODS', 'Journal', 'Method', 'ProcessTeam', 'Progress', 'ReplayPoint', 'Sensitivity',
           'Team', 'Trial', 'build_method', 'calibrate', 'current_team', 'read_request',
           'register_method']
