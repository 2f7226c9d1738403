"""A given plan wins over the request layer by layer; what it does not say stays as requested."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from mmbitsplit.planning import make_plan
from mmbitsplit.structures import QuantSpec, plan_value, read_plan

DEPLOY = {'activation': {'placement': 'deploy'}}
OTHER = {'weight': {'num_bits': 2, 'scale_search': 'minmax'}, 'scope': 'conv2',
         'activation': {'num_bits': 4, 'mode': 'per_tensor', 'norm': 2.0},
         'first_last': {'weight_bits': None, 'activation_bits': None}}


def conv(channels_in=4):
    return nn.Conv2d(channels_in, 4, 3, padding=1)


@pytest.fixture
def net(make_net):
    """A stem, a block with a shortcut, a head; ``head.norm`` stays float."""
    def run(net, x):
        x = net.stem(x).relu()
        return net.head((net.conv2(net.conv1(x).relu()) + net.shortcut(x)).relu())
    return make_net(run, stem=conv(3), conv1=conv(), conv2=conv(), shortcut=conv(),
                    head=nn.Sequential(nn.BatchNorm2d(4), conv()))


@pytest.fixture
def plan_of(net, see, image):
    """The plan of a request, with a plan or without."""
    flow = see(net, image)

    def run(spec, given=None):
        plan = None if given is None else read_plan(given)
        return make_plan(net, flow, QuantSpec(**{**vars(QuantSpec.from_dict(spec)), 'plan': plan}))
    return run


def widths(plan):
    return {layer.name: (layer.weight.num_bits, layer.activation.num_bits,
                         layer.output and layer.output.num_bits) for layer in plan.layers}


@pytest.mark.parametrize('spec', [
    {}, DEPLOY, {'activation': {'num_bits': None}}, {'scope': 'conv1+stem+head'},
    {'weight': {'reduce_range': True}},
    {'overrides': [{'match': 'conv*', 'skip': True}, {'match': 'shortcut', 'activation': {
        'mode': 'per_channel', 'strength': 0.5}, 'weight': {'num_bits': 5}}]}], ids=str)
def test_a_plan_given_back_is_the_plan_whatever_else_is_requested(spec, plan_of):
    plan = plan_of(spec)
    for other in (spec, OTHER):
        again = plan_of(other, plan)
        assert plan_value(again) == plan_value(plan)
        assert [layer.role for layer in again.layers] == [layer.role for layer in plan.layers]
        assert [layer.output for layer in again.layers] == [layer.output for layer in plan.layers]
        assert {part.name for part in again.kept_float} == {part.name for part in plan.kept_float}


def test_a_row_changes_its_layer_and_of_that_what_it_says(plan_of):
    usual = plan_of(DEPLOY)
    plan = plan_of(DEPLOY, {'layers': [
        {'name': 'conv1', 'weight_bits': 2}, {'name': 'conv2', 'output_bits': None},
        {'name': 'head.1', 'weight_bits': 8, 'activation': {'mode': 'per_tensor'}},
        {'name': 'stem', 'input_bits': 6, 'output_bits': 5}]})
    assert widths(plan) == {**widths(usual), 'conv1': (2, 8, None), 'conv2': (4, 8, None),
                            'head.1': (8, 8, None), 'stem': (7, 6, 5)}  # 7: a range is reduced
    assert widths(usual)['conv2'] == (4, 8, 8) and widths(usual)['head.1'] == (7, 8, None)
    assert plan.layers[0].output.rectified  # seen, not given
    modes = {layer.name: layer.activation.mode for layer in plan.layers}
    assert modes.pop('head.1') == 'per_tensor' and {*modes.values()} == {'ecaq'}


def test_a_plan_leaves_in_float_and_takes_what_the_request_leaves(plan_of):
    spec = {'overrides': [{'match': 'conv1', 'skip': True}]}
    plan = plan_of(spec, {'layers': [{'name': 'conv1', 'weight_bits': 3},
                                     {'name': 'shortcut', 'weight_bits': None, 'input_bits': 8}]})
    assert [layer.name for layer in plan.layers] == ['stem', 'conv1', 'conv2', 'head.1']
    assert widths(plan)['conv1'] == (3, 8, None)
    kept, = [part for part in plan.kept_float if part.requested]
    assert (kept.name, kept.reason) == ('shortcut', 'left in float by the plan')


@pytest.mark.parametrize(('row', 'message'), [
    ({'name': 'conv3', 'weight_bits': 4}, "not have, 1 of 1: 'conv3' .*did you mean 'conv[12]"),
    ({'name': 'head', 'weight_bits': 4}, "'head' .*did you mean 'head.1'"),
    ({'name': 'head.0', 'weight_bits': 4}, "'head.0' .*did you mean 'head.1'"),
    ({'name': 'conv1', 'input_bits': 4}, "'conv1', which stays in float: skipped by an override.*"
     'weight_bits'),
    ({'name': 'conv2', 'activation': {'mode': 'per_channel'}},
     "plan, layer 'conv2', activation.*per_channel")])
def test_what_cannot_be_done_names_the_layer(row, message, plan_of):
    spec = {**DEPLOY, 'overrides': [{'match': 'conv1', 'skip': True}]}
    with pytest.raises(ValueError, match=message):
        plan_of(spec, {'layers': [row]})


def test_layers_that_can_only_stay_float_are_refused(make_net, see, image):
    net = make_net(lambda net, x: net.b(net.a(x)) * conv2d(
        net.a(x), net.b.weight).mean(), a=conv(3), b=conv())
    flow = see(net, image)
    rows = {'layers': [{'name': 'b', 'weight_bits': 4}]}
    with pytest.raises(ValueError, match="'b', which stays in float: its weight is read.*null"):
        make_plan(net, flow, QuantSpec(plan=read_plan(rows)))
    rows['layers'][0]['weight_bits'] = None
    assert [layer.name for layer in make_plan(net, flow, QuantSpec(
        plan=read_plan(rows))).layers] == ['a']


def test_layers_in_float_by_the_plan_need_not_be_reached(make_net, see, image):
    net = make_net(lambda net, x: net.a(x), a=conv(3), never=conv())
    flow = see(net, image)
    with pytest.raises(ValueError, match='never reached.*never'):
        make_plan(net, flow, QuantSpec())
    plan = make_plan(net, flow, QuantSpec(plan=read_plan(
        {'layers': [{'name': 'never', 'weight_bits': None}]})))
    assert [row['name'] for row in plan_value(plan)['layers']] == ['a', 'never']
    assert torch.is_tensor(net.never.weight)
