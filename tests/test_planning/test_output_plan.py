"""Which outputs get a quantizer of their own, and which need none."""

import pytest
from torch import nn

from mmbitsplit.models.surgery import fold_bn
from mmbitsplit.planning.request_plan import make_plan
from mmbitsplit.structures import OutputPlan, QuantSpec

DEPLOY = {'activation': {'placement': 'deploy'}}
SIGNED, RECTIFIED = OutputPlan(8, False), OutputPlan(8, True)


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


@pytest.fixture
def outputs(see, image):
    """The outputs of a model's plan: layer name to what is planned, float ones left out."""
    def run(model, spec=None, x=image):
        flow = see(model, x)
        plan = make_plan(model, flow, QuantSpec.from_dict(spec or DEPLOY),
                         fold_bn.foldable_batch_norms(model, flow))
        return {layer.name: layer.output for layer in plan.layers if layer.output is not None}
    return run


@pytest.fixture
def residual_net(make_net):
    """A stem, a block of two convs, a shortcut conv, a head."""
    def run(net, x):
        x = net.stem_norm(net.stem(x)).relu_()
        y = net.norm1(net.conv1(x)).relu_()
        y = net.norm2(net.conv2(y))
        y += net.shortcut(x)
        return net.head(y.relu_().mean((2, 3)))
    return make_net(run, stem=conv(3), stem_norm=nn.BatchNorm2d(4), conv1=conv(),
                    norm1=nn.BatchNorm2d(4), conv2=conv(), norm2=nn.BatchNorm2d(4),
                    shortcut=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 5))


def test_without_the_option_no_output_is_quantized(residual_net, outputs):
    assert outputs(residual_net, {'activation': {'num_bits': 4}}) == {}


def test_what_feeds_an_addition(residual_net, outputs):
    """Not the stem, whose image is float, not conv1 (conv2 alone reads it), not the head."""
    assert outputs(residual_net) == {'conv2': SIGNED, 'shortcut': SIGNED}


def test_a_chain_needs_no_output_quantizer(make_net, outputs):
    net = make_net(lambda net, x: net.d(net.c(net.n(net.b(net.a(x))).relu())), a=conv(3),
                   b=conv(), n=nn.BatchNorm2d(4), c=conv(), d=conv())
    assert outputs(net) == {}


@pytest.mark.parametrize(('use', 'planned'), [
    (lambda net, y: (net.c(y), net.d(y)), SIGNED),  # two readers, two scales
    (lambda net, y: (lambda z: (net.c(z), net.d(z)))(y.relu()), RECTIFIED),
    (lambda net, y: (net.c(y), net.d(y.relu())), SIGNED),
    (lambda net, y: net.c(net.pool(y.relu())), RECTIFIED),
    (lambda net, y: net.c(net.pool(y)), SIGNED),
    (lambda net, y: net.c(nn.functional.interpolate(y, scale_factor=2.0)), SIGNED),
    (lambda net, y: net.c(nn.functional.relu6(y)), SIGNED),
    (lambda net, y: (net.c(y), y), SIGNED),  # feeds a layer and is returned
    (lambda net, y: (net.c(y), net.c(y.relu())), None),  # one quantizer, asked twice
    (lambda net, y: net.c(y), None)])
def test_how_an_output_is_used_decides(make_net, see, image, outputs, use, planned):
    net = make_net(lambda net, x: use(net, net.b(net.a(x))), a=conv(3), b=conv(), c=conv(),
                   d=conv(), pool=nn.MaxPool2d(2))
    unused = [] if 'd' in see(net, image).calls else [{'match': 'd', 'skip': True}]
    assert outputs(net, {**DEPLOY, 'overrides': unused}).get('b') == planned


def test_a_head_that_levels_share(make_net, outputs):
    """Its tower reads alone what the levels' convs give; its own output has two readers."""
    def run(net, x):
        x = net.stem(x)
        levels = [net.fine(x), net.coarse(x[..., ::2])]
        towers = [net.tower(level).relu() for level in levels]
        return [(net.cls(tower), net.reg(tower)) for tower in towers]
    net = make_net(run, stem=conv(3), fine=conv(), coarse=conv(), tower=conv(), cls=conv(),
                   reg=conv())
    assert outputs(net) == {'tower': RECTIFIED}


def test_a_conv_and_a_linear_reader_have_other_channels(make_net, outputs):
    net = make_net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3), b=conv(4, 4),
                   c=nn.Linear(12, 5))
    assert outputs(net) == {'b': SIGNED}


@pytest.mark.parametrize('reader', [
    {'skip': True}, {'activation': {'num_bits': None}},
    {'activation': {'placement': 'inputs', 'mode': 'per_channel'}}], ids=str)
def test_a_reader_without_a_quantizer_to_fold_into(make_net, outputs, reader):
    net = make_net(lambda net, x: net.d(net.c(net.b(net.a(x)))), a=conv(3), b=conv(), c=conv(),
                   d=conv())
    found = outputs(net, {**DEPLOY, 'overrides': [{'match': 'c', **reader}]})
    assert found == {'b': SIGNED}


def test_a_norm_that_is_not_folded_is_an_operation(make_net, outputs):
    """It follows a ReLU."""
    net = make_net(lambda net, x: net.c(net.n(net.b(net.a(x)).relu())), a=conv(3), b=conv(),
                   n=nn.BatchNorm2d(4), c=conv())
    assert outputs(net) == {'b': RECTIFIED}


def test_the_option_can_be_set_for_some_layers(residual_net, outputs):
    at = {'overrides': [{'match': 'shortcut', 'activation': {
        'placement': 'deploy', 'output_bits': 6}}]}
    assert outputs(residual_net, at) == {'shortcut': OutputPlan(6, False)}
    but = {**DEPLOY, 'overrides': [{'match': 'conv*', 'activation': {'placement': 'inputs'}}]}
    assert outputs(residual_net, but) == {'shortcut': SIGNED}


def test_a_quantized_image_makes_the_stem_a_layer_like_others(residual_net, outputs):
    spec = {**DEPLOY, 'overrides': [{'match': 'stem', 'activation': {'num_bits': 8}}]}
    assert outputs(residual_net, spec)['stem'] == RECTIFIED
