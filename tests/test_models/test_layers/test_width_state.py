"""A layer of several widths comes back from a checkpoint's tensors, bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch
from width_solutions import (
    CONV,
    KINDS,
    assert_computes_alike,
    assert_same,
    description_of,
    expecting,
    net_of,
    several,
)

from mmbitsplit.functional import narrower_codes
from mmbitsplit.functional.stored_widths import solution_as_stored
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.layer_state import (
    geometry_in_row,
    plan_row,
    solution_from_file,
    solution_to_file,
)
from mmbitsplit.models.layers.width_state import has_widths, is_part, part_bytes, part_names
from mmbitsplit.structures import LayerGeometry

GEOMETRIES = [CONV, LayerGeometry('linear', 7, 5),
              LayerGeometry('conv_transpose2d', 4, 6, kernel_size=(2, 3), groups=2, stride=(2, 1))]
LAYERS = [kind for kind in KINDS if has_widths(several(**kind))] + [
    dict(stored=False), dict(nesting='planes'), dict(widths=(4,)), dict(nesting=None),
    dict(widths=(2, 3, 4, 5, 6, 7, 8), inputs=(2, 3, 8))]


@pytest.mark.parametrize('kind', LAYERS, ids=str)
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=lambda geometry: geometry.kind)
def test_all_widths_come_back(kind, geometry):
    solution = several(geometry, **kind)
    row = plan_row(solution, geometry)
    found = solution_from_file(solution_to_file(solution, geometry), row, geometry)
    assert_same(found, solution)
    assert geometry_in_row(row) == geometry


@pytest.mark.parametrize('nesting', ['floor', 'planes', None])
def test_the_first_parts_are_the_first_widths(nesting):
    solution = several(nesting=nesting)
    tensors, row = solution_to_file(solution, CONV), plan_row(solution, CONV)
    by_width = {one.num_bits: one for one in (solution, *solution.narrower)}
    for count in range(1, 5):
        kept = sorted(by_width)[:count]
        left = {name: value for name, value in tensors.items()
                if not is_part(name) or name in part_names(kept)}
        found = solution_from_file(left, row, CONV, kept)
        assert [one.num_bits for one in (found, *found.narrower)] == kept[::-1]
        for one in (found, *found.narrower):
            like = by_width[one.num_bits]
            assert torch.equal(one.codes, like.codes)
            assert torch.equal(one.weight_scale, like.weight_scale)
            assert torch.equal(one.bias, like.bias)
            assert nesting != 'floor' or torch.equal(one.weight_offset, like.weight_offset)


def test_nested_codes_take_the_bits_of_the_widest_alone():
    nested, apart = (sum(value.numel() for name, value in solution_to_file(several(
        nesting=nesting), CONV).items() if is_part(name)) for nesting in ('floor', None))
    codes = CONV.out_channels * CONV.inputs_per_output
    assert abs(apart - nested - codes * (2 + 3 + 5 + 8 - 8) // 8) < 20  # scales and biases


def test_stored_values_take_few_bits_a_channel_and_width():
    wide = LayerGeometry('linear', 1, 500)
    parts = {name: value.numel() for name, value in solution_to_file(
        several(wide, widths=(4, 8), inputs=(8,)), wide).items() if is_part(name)}
    assert parts['bits_8'] == 1 + 250
    assert 0 < parts['narrowest'] - 250 < 500 * 10 / 8  # steps of scales over an eighth of all


def test_a_solution_as_stored_takes_no_more_and_is_left_alone():
    stored = solution_as_stored(several(stored=False))
    assert solution_as_stored(stored) is not stored
    assert_same(solution_as_stored(stored), stored)
    whole, few = (sum(value.numel() for name, value in solution_to_file(one, CONV).items()
                      if is_part(name)) for one in (several(stored=False), stored))
    # Three widths of 8 channels: medians and exponents, and no more than a byte a value.
    assert whole - few >= 3 * (8 * (4 + 4) - 7 - 16)


def test_an_offset_that_is_half_a_step_is_not_stored():
    solution = several()
    assert 'weight_offset' not in solution_to_file(solution, CONV)
    other = replace(solution, weight_offset=solution.weight_offset * 1.5)
    tensors, row = solution_to_file(other, CONV), plan_row(other, CONV)
    assert row['weight_offset'] and 'weight_offset' in tensors
    assert_same(solution_from_file(tensors, row, CONV), other)


def test_widths_that_lack_a_bias_get_one_of_zeros():
    solution = several(stored=False)
    solution = replace(solution, bias=None)
    tensors, row = solution_to_file(solution, CONV), plan_row(solution, CONV)
    found = solution_from_file(tensors, row, CONV)
    assert row['bias'] and not found.bias.any()
    assert torch.equal(found.narrower[0].bias, solution.narrower[0].bias)


def test_codes_of_nested_widths_need_not_be_made_to_be_stored():
    solution = several()
    bare = replace(solution, narrower=tuple(replace(one, codes=None)
                                            for one in solution.narrower))
    for name, value in solution_to_file(solution, CONV).items():
        assert torch.equal(value, solution_to_file(bare, CONV)[name])


def test_codes_of_one_width_that_do_not_nest_are_kept():
    solution = several()
    odd = replace(solution.narrower[0], codes=solution.narrower[0].codes ^ 1)
    mixed = replace(solution, narrower=(odd, *solution.narrower[1:]))
    found = solution_from_file(solution_to_file(mixed, CONV), plan_row(mixed, CONV), CONV)
    assert_same(found, mixed)


@pytest.mark.parametrize('kind', LAYERS, ids=str)
def test_a_part_tells_where_it_ends(kind):
    solution = several(**kind)
    tensors, row = solution_to_file(solution, CONV), plan_row(solution, CONV)
    for name in filter(is_part, tensors):
        more = torch.cat([tensors[name], torch.ones(9, dtype=torch.uint8)])
        assert part_bytes(name, more, row, CONV.out_channels, 4 * row['bias']) == len(more) - 9


@pytest.mark.parametrize(('name', 'change', 'message'), [
    ('bits_3', lambda part: part[:-1], "part 'bits_3' has .* too few"),
    ('narrowest', lambda part: torch.cat([part, part[:2]]), "'narrowest' has .* 2 too many")])
def test_parts_of_another_size_are_refused(name, change, message):
    solution = several()
    tensors, row = solution_to_file(solution, CONV), plan_row(solution, CONV)
    with pytest.raises(ValueError, match=message):
        solution_from_file({**tensors, name: change(tensors[name])}, row, CONV)
    del tensors[name]
    with pytest.raises(ValueError, match=f"part '{name}' is missing"):
        solution_from_file(tensors, row, CONV)


def test_a_net_loads_its_state_and_keeps_the_widths_in_use():
    net = net_of()
    other = expecting(description_of(net))
    other[0].use(weight=3, input=4)
    missing, unexpected = other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert not missing and not unexpected
    assert (other[0].num_bits, other[0].input_quantizer.num_bits) == (3, 4)
    assert_computes_alike(net, other)
    net[0].use(weight=2, input=4)  # what is in use is not in the state
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_what_is_missing_is_told():
    net = net_of(KINDS[:1])
    state = net.state_dict()
    del state['0.bits_3']
    missing, unexpected = expecting(description_of(net)).load_state_dict(state, strict=False)
    assert missing == ['0.bits_3'] and not unexpected


def test_a_damaged_part_names_the_layer():
    net = net_of(KINDS[:1])
    state = net.state_dict()
    state['0.bits_3'] = state['0.bits_3'][:-1]
    with pytest.raises(ValueError, match=r"Layer '0': the part 'bits_3' has"):
        expecting(description_of(net)).load_state_dict(state)


def test_one_width_of_the_weight_and_several_inputs():
    layer = QuantizedLayer(CONV, torch.zeros(CONV.weight_shape), None)
    layer.install(several(widths=(4,)))
    other = QuantizedLayer(CONV, torch.zeros(CONV.weight_shape), None)
    other.expect(layer.plan_row())
    other.load_state_dict(layer.state_dict())
    assert_computes_alike([layer], [other])


def test_switched_layers_describe_all_their_widths():
    layer = net_of(KINDS[:1])[0]
    row, codes = layer.plan_row(), layer.codes.clone()
    layer.use(weight=3, input=4)
    assert layer.plan_row() == row and row['num_bits'] == 8
    assert torch.equal(layer.codes, narrower_codes(codes, 8, 3, 'floor'))
