"""Blocks of places that change their widths together, and plans by place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbitsplit.models import DataFlow, LayerWidths
from mmbitsplit.planning.width_blocks import (
    common_choices,
    find_blocks,
    fitting,
    place_widths,
    plan_of_blocks,
)
from mmbitsplit.structures import Widths
from mmbitsplit.structures.plan_file import read_plan, widths_value

PLACES = {'conv': LayerWidths(weight=(3, 6, 8), input=(4, 8), output=(8,)),
          'attention.qkv': LayerWidths(weight=(3, 8), input=(8,)),
          'attention.qkv.product': LayerWidths(a=(4, 8), b=(8,)),
          'add': LayerWidths(stream=(4, 8)), 'head': LayerWidths(weight=(8,), input=(8,))}
FLOW = DataFlow(order=['conv', 'attention.qkv', 'head'])


def test_products_inside_a_unit_belong_to_it_and_what_has_one_width_to_none():
    blocks = {block.name: block for block in find_blocks(FLOW, PLACES)}
    assert {name: block.places for name, block in blocks.items()} == {
        'conv': ('conv',), 'attention.qkv': ('attention.qkv', 'attention.qkv.product'),
        'add': ('add',)}
    assert blocks['conv'].choices == (Widths(3, 4), Widths(6, 8), Widths(8, 8))
    assert blocks['attention.qkv'].choices == (Widths(3, 4), Widths(8, 8))
    assert blocks['add'].choices == (Widths(8, 4), Widths(8, 8))
    every = {block.name: block for block in find_blocks(FLOW, PLACES, pairs='all')}
    assert every['attention.qkv'].choices == tuple(
        Widths(weight, bits) for weight in (3, 8) for bits in (4, 8))


def test_a_plan_by_block_is_a_plan_by_place_that_a_file_holds():
    blocks = find_blocks(FLOW, PLACES)
    plan = plan_of_blocks({'conv': Widths(6, 8), 'attention.qkv': Widths(3, 4),
                           'add': Widths(8, 4)}, blocks, PLACES)
    value = widths_value(plan)
    assert value['layers'] == [
        {'name': 'conv', 'weight_bits': 6, 'input_bits': 8, 'output_bits': 8},
        {'name': 'attention.qkv', 'weight_bits': 3, 'input_bits': 8}]
    assert value['products'] == [{'name': 'attention.qkv.product', 'a_bits': 4, 'b_bits': 8}]
    assert value['streams'] == [{'name': 'add', 'num_bits': 4}]
    assert read_plan(value) == plan


def test_uniform_plans_are_of_what_weights_have():
    assert common_choices(find_blocks(FLOW, PLACES)) == [
        Widths(3, 4), Widths(6, 8), Widths(8, 8)]


@given(st.integers(2, 8), st.sets(st.integers(2, 8), min_size=1))
def test_a_place_gets_the_least_width_that_is_enough(asked, widths):
    found = fitting(asked, sorted(widths))
    assert found in widths and (found >= asked or found == max(widths))
    assert not any(asked <= other < found for other in widths)
    assert place_widths(LayerWidths(weight=tuple(sorted(widths))), Widths(asked)) == {
        'weight': found}


def test_one_width_everywhere_is_refused():
    with pytest.raises(ValueError, match='one width everywhere'):
        find_blocks(FLOW, {'head': PLACES['head']})
