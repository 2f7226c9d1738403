"""Runs a model on calibration images and solves its layers."""

from mmbitsplit.calibration.calibrate import Progress, calibrate
from mmbitsplit.calibration.methods import METHODS, build_method, register_method
from mmbitsplit.calibration.replay import ReplayPoint

__all__ = ['METHODS', 'Progress', 'ReplayPoint', 'build_method', 'calibrate', 'register_method']
