"""Fixtures: small models and ways to calibrate, watch and prepare them."""

from calibration_nets import *  # noqa: F403
from unit_learning_cases import solved  # noqa: F401
