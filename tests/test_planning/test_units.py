"""Which parts of small nets are units."""

import pytest
import torch
from divided_nets import (
    Part,
    block,
    conv,
    divide,
    net,
    reasons,
    rectified,
    shapes,
    two_in,
)
from torch import nn


@pytest.fixture
def image():
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_residual_block_is_a_unit(image):
    units = divide(net(part=block()), [image])
    assert [(unit.name, unit.modules, unit.layers) for unit in units] == [
        ('stem', ('stem',), ('stem',)), ('part', ('part',), ('part.a', 'part.b')),
        ('last', ('last',), ('last',))]


def test_a_stage_of_blocks_is_left_to_them_however_it_is_wrapped(image):
    stage = nn.Sequential(block(), conv(), block())
    units = divide(net(stage=nn.Sequential(stage)), [image])
    assert shapes(units) == [('stage.0.0',), ('stage.0.2',)]
    assert reasons(units, 'stage.0.1') == {
        "'stage.0' only calls parts one after another, and 'stage.0.0' is a unit"}


def test_a_stage_is_a_unit_where_that_is_asked_for(image):
    """However many layers it holds; a stage of stages is divided, and what is none as ever."""
    wide = nn.Sequential(*(block() for _ in range(6)))
    model = net(wide=wide, stages=nn.Sequential(nn.Sequential(block(), conv(), block()),
                                                nn.Sequential(block(), block())), part=block())
    units = divide(model, [image], granularity='stage')
    assert shapes(units) == [('wide',), ('stages.0',), ('stages.1',), ('part',)]
    assert [len(unit.layers) for unit in units] == [1, 12, 5, 4, 2, 1]
    assert shapes(divide(model, [image], granularity='stage', max_bytes=12 * image.nbytes)) == [
        *((f'wide.{number}',) for number in range(6)), ('stages.0',), ('stages.1',), ('part',)]


def test_a_net_is_as_much_as_can_be_called_as_one_function(image):
    model = net(wide=nn.Sequential(*(block() for _ in range(6))), pool=nn.MaxPool2d(2),
                part=block())
    assert shapes(divide(model, [image], granularity='net')) == [
        ('stem', 'wide', 'pool', 'part', 'last')]
    apart = divide(model, [image], granularity='net', overrides=[
        dict(match='wide.1.a', unit='layer'), dict(match='part', unit='module')])
    assert shapes(apart) == [('wide.0',), ('wide.2', 'wide.3', 'wide.4', 'wide.5'), ('part',)]

    def run(net, x):
        y = net.wide(net.stem(x))
        return net.last(net.part(y)), y
    assert shapes(divide(net(run, wide=nn.Sequential(block(), block()), part=block()), [image],
                         granularity='net')) == [('stem', 'wide'), ('part', 'last')]


@pytest.mark.parametrize(('merge', 'wanted'), [
    (1, [('stage.0',), ('stage.1',), ('stage.3',)]),
    (2, [('stage.0', 'stage.1'), ('stage.3',)]),
    (3, [('stage.0', 'stage.1', 'stage.2', 'stage.3')])])
def test_neighbouring_blocks_are_joined_as_many_as_are_asked_for(image, merge, wanted):
    """With what is called between; however many layers that makes, and no layer beside them."""
    stage = nn.Sequential(block(), block(), nn.ReLU(), block(), nn.ReLU())
    units = divide(net(stage=stage), [image], merge=merge, max_layers=3)
    assert shapes(units) == wanted
    assert sum((unit.layers for unit in units), ()) == sum(
        (unit.layers for unit in divide(net(stage=stage), [image])), ())
    apart = divide(net(stage=nn.Sequential(block(), conv(), block())), [image], merge=2)
    assert shapes(apart) == [('stage.0',), ('stage.2',)]


def test_blocks_are_not_joined_where_something_else_reads_or_bytes_are_too_many(image):
    def twice(part, x):
        first = part.one(x)
        return part.two(first) + first

    assert shapes(divide(net(part=block(twice, one=block(), two=block())), [image], merge=2,
                         max_layers=3)) == [('part.one',), ('part.two',)]
    stage = nn.Sequential(block(), block())
    one = 4 * image.numel() * 5  # what a block makes, about
    assert shapes(divide(net(stage=stage), [image], merge=2, max_bytes=one)) == [
        ('stage.0',), ('stage.1',)]


def test_a_block_that_is_asked_for_stays_by_itself(image):
    stage = nn.Sequential(block(), block(), block())
    units = divide(net(stage=stage), [image], merge=3,
                   overrides=[dict(match='stage.1', unit='module')])
    assert shapes(units) == [('stage.0',), ('stage.1',), ('stage.2',)]


def test_a_block_around_blocks_is_one_unit(image):
    """A skip around them is what makes it one."""
    outer = block(lambda part, x: x + part.b(part.a(x)), a=block(), b=block())
    assert shapes(divide(net(part=outer), [image])) == [('part',)]


def test_a_wrapper_of_one_block_gives_the_name(image):
    assert shapes(divide(net(stage=nn.Sequential(block())), [image])) == [('stage',)]


def test_layers_in_a_row_are_a_chain_with_what_comes_between(image):
    model = net(a=nn.Sequential(conv(), nn.BatchNorm2d(4)), relu=nn.ReLU(), pool=nn.MaxPool2d(2))
    units = divide(model, [image])
    assert [unit.modules for unit in units] == [('stem', 'a', 'relu', 'pool', 'last')]
    assert units[0].name == 'stem' and units[0].layers == ('stem', 'a.0', 'last')


def test_a_chain_that_all_levels_share_uses_a_module_twice(image):
    def run(net, x):
        return [net.last(net.relu(net.b(net.relu(net.a(level)))))
                for level in (net.stem(x), net.other(x)[..., ::2])]
    units = divide(net(run, a=conv(), b=conv(), relu=nn.ReLU(), other=conv()), [image])
    assert shapes(units) == [('a', 'relu', 'b', 'relu', 'last')]


@pytest.mark.parametrize('between', [
    lambda x: x.relu(), lambda x: x[:, :, 1:], lambda x: x.relu_(), lambda x: x.view_as(x)])
def test_what_is_computed_between_modules_ends_a_chain(image, between):
    units = divide(net(lambda net, x: net.last(between(net.stem(x)))), [image])
    assert shapes(units) == []


def test_a_second_reader_ends_a_chain(image):
    def run(net, x):
        y = net.b(net.a(net.stem(x)))
        return net.last(y), net.side(y)
    assert shapes(divide(net(run, a=conv(), b=conv(), side=conv()), [image])) == [
        ('stem', 'a', 'b')]


def test_a_layer_called_meanwhile_ends_a_chain(image):
    """Of two towers side by side one is finished before the other begins."""
    def run(net, x):
        y = net.stem(x).relu()
        left, right = net.b(net.a(y)), net.d(net.c(y))
        return net.e(left), net.last(right)
    units = divide(net(run, **{name: conv() for name in 'abcde'}), [image])
    assert shapes(units) == [('a', 'b'), ('c', 'd')]


@pytest.mark.parametrize('length, limit, sizes', [
    (8, 8, [8]), (9, 8, [4, 5]), (13, 4, [3, 3, 3, 4]), (3, 2, [1, 2])])
def test_long_chains_are_cut_in_few_even_pieces(image, length, limit, sizes):
    units = divide(nn.Sequential(*(conv() for _ in range(length))), [image], max_layers=limit)
    assert [len(unit.layers) for unit in units] == sizes


def test_chains_are_cut_where_bytes_are_too_many(image):
    model = nn.Sequential(*(conv() for _ in range(4)))
    one = image.nbytes
    assert [len(unit.layers) for unit in divide(model, [image], max_bytes=2 * one)] == [2, 2]
    assert [len(unit.layers) for unit in divide(model, [image], max_bytes=one)] == [1] * 4


def test_no_name_matters(image):
    """The same net, its modules named and registered in another order."""
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.zz, self.m = conv(), nn.ModuleDict({'q': conv(), 'é': block()})

        def forward(self, x):
            return self.zz(self.m['é'](self.m['q'](x)))
    assert [unit.layers for unit in divide(Odd(), [image])] == [
        ('m.q',), ('m.é.a', 'm.é.b'), ('zz',)]


def test_shapes_and_constants_are_no_values(image):
    """Nor does a mask that no image decides, nor indices that a pooling layer leaves unread."""
    def run(part, x):
        mask = torch.ones_like(x) * torch.zeros(x.shape[-1])
        y = part.a(x.masked_fill(mask != 0, -1) if bool((torch.ones(2) > 0).all()) else x)
        return nn.functional.max_pool2d(x + part.b(y.relu()), 2)
    assert shapes(divide(net(part=block(run)), [image])) == [('part',)]


def test_a_part_that_changes_its_input_in_place(image):
    """What others then read of the input was made inside."""
    def run(net, x):
        y = net.stem(x)
        z = net.part(y)
        return net.last(z) + (y if net.reads else 0)
    model = net(run, part=block(lambda part, x: rectified(part, x.relu_())))
    model.reads = False
    assert shapes(divide(model, [image])) == [('part',)]
    model.reads = True
    assert shapes(divide(model, [image])) == []


def test_a_kernel_that_torch_does_not_see_reads_what_it_is_given(image):
    class Unseen(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy() * 2)

    def run(net, x):
        y = net.stem(x)
        return net.last(y), net.unseen(y)
    assert shapes(divide(net(run, unseen=Unseen()), [image])) == []


def test_layers_that_are_set_apart(image):
    units = divide(net(part=block(), other=block()), [image],
                   overrides=[dict(match='part.b', unit='layer')])
    assert shapes(units) == [('other',)]
    assert reasons(units, 'part.a') == {"'part' holds 'part.b', which overrides[0] sets apart"}
    assert reasons(units, 'part.b') == {'set apart by overrides[0]'}


def test_a_chain_leaves_out_what_is_set_apart(image):
    units = divide(nn.Sequential(*(conv() for _ in range(5))), [image],
                   overrides=[dict(match='2', unit='layer')])
    assert [unit.layers for unit in units] == [('0', '1'), ('2',), ('3', '4')]


def test_a_stage_that_is_made_one_unit(image):
    stage = nn.Sequential(*(block() for _ in range(6)))
    overrides = [dict(match='stage*', unit='module')]
    assert shapes(divide(net(stage=stage), [image])) == [(f'stage.{n}',) for n in range(6)]
    assert shapes(divide(net(stage=stage), [image], overrides=overrides)) == [('stage',)]


def test_a_unit_that_is_asked_for_within_one_that_would_be_found(image):
    outer = block(lambda part, x: x + part.b(part.a(x)), a=block(), b=block())
    units = divide(net(part=outer), [image], overrides=[dict(match='part.a', unit='module')])
    assert shapes(units) == [('part.a',), ('part.b',)]


@pytest.mark.parametrize('overrides, message', [
    ([dict(match='part', unit='module')],
     r"overrides\[0\]: 'part' cannot be a unit: it takes 2 tensors\. .* match a module inside"),
    ([dict(match='other.?', unit='layer'), dict(match='other', unit='module')],
     r"overrides\[1\] makes a unit of 'other', which holds 'other.a', set apart by overrides\[0\]"),
    ([dict(match='pool', unit='module')],
     r"overrides\[0\].match='pool' .*matches no module that calls quantized layers"),
    ([dict(match='prat', unit='module')], r"match='prat' matches no module"),
    ([dict(match='part', unit='layer')], r"match='part' matches no layer"),
    ([dict(match='part', unit='block')], "unit='block' is not supported; allowed is 'layer'"),
    ([dict(match='part', unit='module', skip=True)], "unit='module' is not supported together")])
def test_overrides_that_cannot_be(image, overrides, message):
    model = Part(lambda net, x: net.pool(net.other(two_in(net, x))), stem=conv(), last=conv(),
                 part=block(lambda part, x, y: x + rectified(part, y)), other=block(),
                 pool=nn.MaxPool2d(2))
    with pytest.raises(ValueError, match=message):
        divide(model, [image], overrides=overrides)
