"""From a request and a data flow to a plan: roles, overrides, scope, and what stays float."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from mmbitsplit.planning.request_plan import make_plan, matches
from mmbitsplit.structures import QuantSpec


def conv(channels_in=4):
    return nn.Conv2d(channels_in, 4, 3, padding=1)


@pytest.fixture
def detector(make_net):
    """backbone.0 (first), backbone.2, neck.0, head.cls and head.reg (last)."""
    def run(net, x):
        x = net.neck(net.backbone(x))
        return net.head['cls'](x), net.head['reg'](x)
    return make_net(run, backbone=nn.Sequential(conv(3), nn.ReLU(), conv()),
                    neck=nn.Sequential(conv()),
                    head=nn.ModuleDict({'cls': conv(), 'reg': conv()}))


@pytest.fixture
def plan_of(see, image):
    """name -> plan, and the plan itself."""
    def run(model, spec=None, x=image):
        plan = make_plan(model, see(model, x), QuantSpec.from_dict(spec or {}), {})
        return {layer.name: layer for layer in plan.layers}, plan
    return run


def bits(layers):
    return {name: (layer.weight.num_bits, layer.activation.num_bits)
            for name, layer in layers.items()}


def test_first_and_last_keep_eight_bits_and_the_image_stays_float(detector, plan_of):
    layers, plan = plan_of(detector, {'weight': {'num_bits': 3}, 'activation': {'num_bits': 4}})
    assert bits(layers) == {'backbone.0': (8, None), 'backbone.2': (3, 4), 'neck.0': (3, 4),
                            'head.cls': (8, 8), 'head.reg': (8, 8)}
    assert [layer.role for layer in plan.layers] == ['first', 'inner', 'inner', 'last', 'last']
    assert plan.kept_float == ()


def test_first_and_last_can_be_treated_like_all_others(detector, plan_of):
    layers, _ = plan_of(detector, {'first_last': {'weight_bits': None, 'activation_bits': 4}})
    assert bits(layers) == {'backbone.0': (4, None), 'backbone.2': (4, 8), 'neck.0': (4, 8),
                            'head.cls': (4, 4), 'head.reg': (4, 4)}


def test_weights_only_quantizes_no_input_anywhere(detector, plan_of):
    layers, _ = plan_of(detector, {'activation': {'num_bits': None}})
    assert {activation for _, activation in bits(layers).values()} == {None}


def weight_bits(layers):
    return [layer.weight.num_bits for layer in layers.values()]


DEPLOY = {'activation': {'placement': 'deploy'}}


@pytest.mark.parametrize('spec, wanted', [
    ({}, [8, 4, 4, 8, 8]), (DEPLOY, [8, 4, 4, 7, 7]),
    ({**DEPLOY, 'weight': {'num_bits': 8}}, [8, 8, 8, 8, 8]),  # would make nothing right
    ({**DEPLOY, 'weight': {'num_bits': 8, 'reduce_range': True}}, [8, 7, 7, 7, 7]),
    ({**DEPLOY, 'weight': {'reduce_range': False}}, [8, 4, 4, 8, 8]),
    ({'weight': {'reduce_range': True}}, [8, 4, 4, 7, 7]),
    ({'weight': {'reduce_range': True}, 'activation': {'num_bits': None}}, [8, 4, 4, 8, 8]),
    ({**DEPLOY, 'overrides': [{'match': 'head.cls', 'weight': {'reduce_range': False}}]},
     [8, 4, 4, 8, 7])])
def test_ranges_are_reduced_where_inputs_are_quantized(detector, plan_of, spec, wanted):
    """The first layer takes the float image and is computed in float."""
    layers, _ = plan_of(detector, spec)
    assert weight_bits(layers) == wanted


def test_a_model_of_one_layer_is_first_and_last(make_net, plan_of):
    layers, _ = plan_of(make_net(lambda net, x: net.a(x), a=conv(3)))
    assert layers['a'].role == 'first+last'
    assert bits(layers)['a'] == (8, None)


def test_overrides_match_by_shell_pattern_and_later_ones_win(detector, plan_of):
    layers, _ = plan_of(detector, {'overrides': [
        {'match': 'backbone.*', 'weight': {'num_bits': 2}},
        {'match': 'head.*', 'weight': {'num_bits': 6}, 'activation': {'num_bits': 5}},
        {'match': '*.2', 'weight': {'num_bits': 7}},
        {'match': 'head.c?s', 'activation': {'num_bits': None}}]})
    assert bits(layers) == {'backbone.0': (2, None), 'backbone.2': (7, 8), 'neck.0': (4, 8),
                            'head.cls': (6, None), 'head.reg': (6, 5)}


def test_overrides_keep_what_they_do_not_name(detector, plan_of):
    layers, _ = plan_of(detector, {
        'activation': {'mode': 'per_tensor', 'symmetry': 'signed'},
        'overrides': [{'match': 'neck.0', 'activation': {'mode': 'per_channel'}}]})
    neck = layers['neck.0'].activation
    assert (neck.mode, neck.symmetry, neck.num_bits) == ('per_channel', 'signed', 8)
    assert layers['backbone.2'].activation.mode == 'per_tensor'


def test_an_override_can_even_quantize_the_image(detector, plan_of):
    layers, _ = plan_of(detector, {'overrides': [
        {'match': 'backbone.0', 'activation': {'num_bits': 8}}]})
    assert bits(layers)['backbone.0'] == (8, 8)


def test_skipped_layers_are_listed_with_their_share(detector, plan_of):
    layers, plan = plan_of(detector, {'overrides': [{'match': 'head.*', 'skip': True}]})
    assert set(layers) == {'backbone.0', 'backbone.2', 'neck.0'}
    assert [part.name for part in plan.kept_float] == ['head.cls', 'head.reg']
    one, total = 4 * 4 * 9 + 4, sum(p.numel() for p in detector.parameters())
    for part in plan.kept_float:
        assert (part.kind, part.num_weights) == ('Conv2d', one)
        assert part.share == pytest.approx(one / total)
        assert 'override' in part.reason


@pytest.mark.parametrize(('scope', 'inside'), [
    ('all', {'backbone.0', 'backbone.2', 'neck.0', 'head.cls', 'head.reg'}),
    ('backbone', {'backbone.0', 'backbone.2'}),
    ('backbone+neck', {'backbone.0', 'backbone.2', 'neck.0'})])
def test_scope_narrows_to_parts_of_the_model(detector, plan_of, scope, inside):
    layers, plan = plan_of(detector, {'scope': scope})
    assert set(layers) == inside
    assert {part.name for part in plan.kept_float} | inside == {
        'backbone.0', 'backbone.2', 'neck.0', 'head.cls', 'head.reg'}
    assert all(f"'{scope}'" in part.reason for part in plan.kept_float)


@pytest.mark.parametrize('scope', ['backbon', 'backbone+nek', 'backbone.0', ''])
def test_a_scope_that_is_no_part_is_refused_with_the_nearest(detector, plan_of, scope):
    with pytest.raises(ValueError, match=r'scope=.*no part.*backbone, head, neck'):
        plan_of(detector, {'scope': scope})


@pytest.mark.parametrize('pattern', ['backbone', 'bakbone.*', 'backbone.1', 'Neck.0'])
def test_an_override_that_matches_no_layer_is_refused(detector, plan_of, pattern):
    with pytest.raises(ValueError) as caught:
        plan_of(detector, {'overrides': [{'match': '*'}, {'match': pattern, 'skip': True}]})
    assert f"overrides[1].match='{pattern}' matches no layer" in str(caught.value)


def test_patterns_are_case_sensitive_shell_patterns():
    assert matches('backbone.layer1.0', 'backbone.layer[12].*')
    assert not matches('backbone.layer3.0', 'backbone.layer[12].*')
    assert not matches('Backbone.layer1.0', 'backbone.*')


def test_a_layer_never_reached_is_an_error_that_names_it_and_two_ways_out(make_net, plan_of):
    net = make_net(lambda net, x: net.b(net.a(x)), a=conv(3), b=conv(), mask=conv())
    with pytest.raises(ValueError) as caught:
        plan_of(net)
    message = str(caught.value)
    assert '1 layer(s) were never reached' in message
    assert ': mask.' in message
    assert "dict(match='mask', skip=True)" in message


@pytest.mark.parametrize('spec', [
    {'overrides': [{'match': 'mask', 'skip': True}]}, {'scope': 'a+b'}])
def test_a_layer_never_reached_may_be_left_out(make_net, plan_of, spec):
    net = make_net(lambda net, x: net.b(net.a(x)), a=conv(3), b=conv(), mask=conv())
    layers, _ = plan_of(net, spec)
    assert set(layers) == {'a', 'b'}


class Rolled(nn.Conv2d):

    def forward(self, x):
        return super().forward(x.roll(1, 2))


def test_unsupported_kinds_stay_float_and_are_listed_with_their_share(make_net, plan_of, image):
    def run(net, x):
        x = net.odd(net.a(x))
        x = net.line(x.flatten(2)).mT
        x = x + net.words(torch.zeros(1, dtype=torch.int64))
        return net.fc(net.attention(x, x, x)[0])
    net = make_net(run, a=conv(3), odd=Rolled(4, 4, 1), line=nn.Conv1d(4, 4, 1),
                   words=nn.Embedding(7, 4), attention=nn.MultiheadAttention(4, 2),
                   fc=nn.Linear(4, 2))
    layers, plan = plan_of(net)
    assert set(layers) == {'a', 'fc'}
    listed = {part.name: part for part in plan.kept_float}
    assert {name: part.kind for name, part in listed.items()} == {
        'odd': 'Rolled', 'line': 'Conv1d',
        'attention': 'MultiheadAttention', 'attention.out_proj': 'NonDynamicallyQuantizableLinear'}
    assert listed['odd'].reason.endswith('cannot be part of a quantized layer: aten.roll')
    assert 'not supported' in listed['line'].reason
    assert [table.name for table in plan.embeddings] == ['words']
    quantizable = sum(p.numel() for name in ('a', 'fc', 'words')
                      for p in getattr(net, name).parameters())
    total = sum(p.numel() for p in net.parameters())
    assert sum(part.share for part in plan.kept_float) == pytest.approx(1 - quantizable / total)


class Adapted(Rolled):
    """Has parameters in modules below it, too."""

    def __init__(self):
        super().__init__(4, 4, 1)
        self.extra = nn.Embedding(3, 5)
        self.norm = nn.BatchNorm2d(4)


def test_what_makes_up_a_layer_is_counted_with_it_and_not_listed(make_net, plan_of):
    """Parametrized weights are below their layer."""
    normed = weight_norm(conv())
    net = make_net(lambda net, x: net.b(net.odd(net.normed(net.a(x)))), a=conv(3), normed=normed,
                   odd=Adapted(), b=spectral_norm(conv()))
    layers, plan = plan_of(net)
    assert set(layers) == {'a', 'normed', 'b'}
    assert [(part.name, part.num_weights) for part in plan.kept_float] == [('odd', 20 + 15 + 8)]
    layers, plan = plan_of(net, {'overrides': [{'match': 'normed', 'skip': True}]})
    assert {part.name: part.num_weights for part in plan.kept_float} == {
        'odd': 43, 'normed': sum(p.numel() for p in normed.parameters())}


def test_layers_without_matrices_are_not_worth_listing(make_net, plan_of):
    net = make_net(lambda net, x: net.norm(net.a(x)).relu(), a=conv(3), norm=nn.GroupNorm(2, 4))
    assert plan_of(net)[1].kept_float == ()
