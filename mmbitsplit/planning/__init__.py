"""Decides what is done with each layer: from the request, by sensitivity."""

from mmbitsplit.planning.request_plan import check_request, make_plan
from mmbitsplit.planning.sensitivity import Sensitivity, Trial

__all__ = ['Sensitivity', 'Trial', 'check_request', 'make_plan']
