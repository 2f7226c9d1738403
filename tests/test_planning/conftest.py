"""Fixtures: small models and ways to calibrate, watch and prepare them."""

from calibration_nets import *  # noqa: F403
from model_nets import *  # noqa: F403
from width_study import study  # noqa: F401
