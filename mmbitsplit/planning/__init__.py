"""Decides what is done with each layer, and which are solved together."""

from mmbitsplit.planning.allocation import Allocation, allocate, front
from mmbitsplit.planning.request_plan import check_request, make_plan
from mmbitsplit.planning.sensitivity import Sensitivity, Trial
from mmbitsplit.planning.units import find_units

__all__ = ['Allocation', 'Sensitivity', 'Trial', 'allocate', 'check_request', 'find_units', 'front',
           'make_plan']
