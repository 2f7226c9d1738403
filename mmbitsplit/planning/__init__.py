"""Decides what is done with each layer, and which are solved together."""

from mmbitsplit.planning.request_plan import check_request, make_plan
from mmbitsplit.planning.sensitivity import Sensitivity, Trial
from mmbitsplit.planning.units import find_units

__all__ = ['Sensitivity', 'Trial', 'check_request', 'find_units', 'make_plan']
