"""Several widths of a layer: what the guard compares, and sums that two widths share."""

import math

import pytest
import torch

from mmbitsplit.functional import layer_statistics
from mmbitsplit.solving.input_scales import Candidate
from mmbitsplit.solving.output_error import Judgement
from mmbitsplit.solving.positions import Rows
from mmbitsplit.solving.solve_widths import _alike, _as_of, _AtWidth, rounding_is_better
from mmbitsplit.structures import LayerGeometry, QParams


@pytest.mark.parametrize(('solved', 'rounded', 'better'), [
    ((0.088, 8e-4), (0.136, 5e-4), False),  # 3 bits gain more than 8 bits lose, if by less a factor
    ((0.070, 3e-4), (0.065, 3e-4), True), ((0.1, 0.01), (0.1, 0.01), False),
    ((math.nan, 0.01), (0.1, 0.01), True)])
def test_rounding_is_taken_where_its_errors_add_up_to_less(solved, rounded, better):
    judged, plain = ([Judgement(error, None) for error in errors] for errors in (solved, rounded))
    assert rounding_is_better(judged, plain) is better


def test_sums_of_eight_bits_stand_for_those_of_six_and_of_nothing_narrower():
    geometry, generator = LayerGeometry('linear', 6, 4), torch.Generator().manual_seed(0)
    x = torch.rand(1, 6, 4000, generator=generator) * torch.rand(1, 6, 1, generator=generator)
    y = torch.rand(1, 4, 6, generator=generator) @ x
    pattern = x.amax(-1)[0]

    def at(bits):
        one = Candidate(QParams(pattern / (2 ** bits - 1), torch.zeros(6), 0, 2 ** bits - 1))
        inputs = one.inputs(x, geometry)
        return _AtWidth(bits=bits, input=one, statistics=layer_statistics(inputs, y),
                        held_out=Rows(inputs, y), weight=y)

    eight, six = at(8), at(6)
    assert _alike(eight, six.input) and not _alike(eight, at(5).input)
    sums, held_out = _as_of(eight, six.input, Rows(x, y), geometry)
    for name in ('gram', 'cross', 'x_sum', 'y_sq'):
        torch.testing.assert_close(getattr(sums, name), getattr(six.statistics, name),
                                   rtol=5e-3, atol=1e-9)
    assert torch.equal(held_out.x, six.held_out.x)
    same, positions = _as_of(eight, eight.input, Rows(x, y), geometry)
    assert same is eight.statistics and positions is eight.held_out
