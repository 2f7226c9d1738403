"""Fixtures: small models and ways to calibrate, watch and prepare them."""

from calibration_nets import *  # noqa: F403
