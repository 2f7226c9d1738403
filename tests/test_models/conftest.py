"""Fixtures: small models and ways to calibrate, watch and prepare them."""

from model_nets import *  # noqa: F403
