"""The guard over several widths: errors are added up, not their factors."""

import math

import pytest

from mmbitsplit.solving.output_error import Judgement
from mmbitsplit.solving.solve_widths import rounding_is_better


@pytest.mark.parametrize(('solved', 'rounded', 'better'), [
    ((0.088, 8e-4), (0.136, 5e-4), False),  # 3 bits gain more than 8 bits lose, if by less a factor
    ((0.070, 3e-4), (0.065, 3e-4), True), ((0.1, 0.01), (0.1, 0.01), False),
    ((math.nan, 0.01), (0.1, 0.01), True)])
def test_rounding_is_taken_where_its_errors_add_up_to_less(solved, rounded, better):
    judged, plain = ([Judgement(error, None) for error in errors] for errors in (solved, rounded))
    assert rounding_is_better(judged, plain) is better
