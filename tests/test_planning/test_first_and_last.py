"""First and last layers have widths of their own; a run where layers differ otherwise says so."""

import pytest

from mmbitsplit.planning.first_and_last import is_uniform
from mmbitsplit.structures import QuantSpec

USUAL = [('first', 8, None), ('inner', 4, 8), ('inner', 4, 8), ('last', 8, 8)]
DEPLOY = {'activation': {'placement': 'deploy'}}


@pytest.mark.parametrize(('layers', 'spec', 'uniform'), [
    (USUAL, {}, True), (USUAL[:1], {}, True), ([], {}, True),
    ([*USUAL, ('inner', 3, 8)], {}, False), ([*USUAL, ('inner', 4, 4)], {}, False),
    ([*USUAL, ('inner', 4, None)], {}, False), ([('first', 4, None), *USUAL[1:]], {}, False),
    (USUAL, {'weight': {'num_bits': 3}}, False),
    (USUAL[:-1] + [('last', 7, 8)], DEPLOY, True), (USUAL, DEPLOY, False),
    ([('inner', 4, None), ('last', 8, None)], {'activation': {'num_bits': None}}, True)])
def test_uniform_is_what_the_request_alone_gives(layers, spec, uniform):
    assert is_uniform(layers, QuantSpec.from_dict(spec)) is uniform


def test_a_paper_s_width_behind_the_first_layer_is_no_mixture():
    layers = [('first', 8, None), ('inner', 4, 8), ('inner', 4, 4), ('last', 8, 8)]
    for placement, uniform in (('brecq', True), ('qdrop', False)):
        spec = {'activation': {'num_bits': 4, 'placement': placement}}
        assert is_uniform(layers, QuantSpec.from_dict(spec)) is uniform
