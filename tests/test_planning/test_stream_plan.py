"""Residual streams are found without a name, and each placement gives the widths of its paper."""

import pytest
import torch.nn.functional as F
from torch import nn

from mmbitsplit.models.surgery import fold_bn
from mmbitsplit.planning.request_plan import make_plan
from mmbitsplit.structures import OutputPlan, QuantSpec, StreamPlan, plan_value, read_plan


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class Block(nn.Module):
    """Two convolutions, each with its batch norm, added to what came in; one ReLU for both."""

    def __init__(self, last_relu=True):
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.last_relu = nn.ReLU(inplace=True), last_relu

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y = y + x
        return self.relu(y) if self.last_relu else y


@pytest.fixture
def plan_of(see, image):
    """Plans a model at W3A3."""
    def run(model, placement='residual', **spec):
        flow = see(model, image)
        return make_plan(model, flow, QuantSpec.from_dict({
            'weight': {'num_bits': 3}, 'activation': {'num_bits': 3, 'placement': placement},
            **spec}), fold_bn.foldable_batch_norms(model, flow))
    return run


@pytest.fixture
def net(make_net):
    """A stem, a pool, two blocks (the second without a ReLU at its end), two heads."""
    def run(net, x):
        x = net.blocks(net.pool(net.stem_relu(net.stem_norm(net.stem(x)))))
        return net.classify(x.mean((2, 3)))
    return make_net(run, stem=conv(3), stem_norm=nn.BatchNorm2d(4), stem_relu=nn.ReLU(),
                    pool=nn.MaxPool2d(2), blocks=nn.Sequential(Block(), Block(False), Block()),
                    classify=nn.Linear(4, 5))


STREAMS = (('pool', ('blocks.0.conv1',)), ('blocks.0', ('blocks.1.conv1',)),
           ('blocks.1', ('blocks.2.conv1',)))


def test_what_a_block_gives_is_a_stream_and_what_is_pooled_alone_is_none(net, plan_of):
    plan = plan_of(net)
    assert plan.streams == tuple(StreamPlan(name, 3, readers) for name, readers in STREAMS)
    assert {layer.name: layer.stream for layer in plan.layers if layer.stream} == {
        reader: name for name, (reader,) in STREAMS}
    assert plan.open_streams == ()
    assert all(layer.activation.mode == ('per_tensor' if layer.stream else 'ecaq')
               for layer in plan.layers)


@pytest.mark.parametrize(('placement', 'pixels', 'stem', 'streams'), [
    ('inputs', None, 3, []), ('deploy', None, 3, []), ('residual', None, 3, [3, 3, 3]),
    ('qdrop', None, 3, [3, 3, 3]), ('brecq', None, 8, [8, 3, 3]), ('calibtip', 8, 3, [])])
def test_each_placement_has_the_widths_of_its_paper(net, plan_of, placement, pixels, stem, streams):
    """Weights of first and last layers 8, the last layer's input 8, for all alike."""
    plan = plan_of(net, placement, weight={'num_bits': 3, 'reduce_range': False})
    found = {layer.name: (layer.weight.num_bits, layer.activation.num_bits)
             for layer in plan.layers}
    assert found == {
        'stem': (8, pixels), 'blocks.0.conv1': (3, stem), 'blocks.0.conv2': (3, 3),
        'blocks.1.conv1': (3, 3), 'blocks.1.conv2': (3, 3), 'blocks.2.conv1': (3, 3),
        'blocks.2.conv2': (3, 3), 'classify': (8, 8)}
    assert [stream.num_bits for stream in plan.streams] == streams


@pytest.mark.parametrize('placement', ['qdrop', 'brecq', 'calibtip'])
def test_a_paper_s_rule_of_first_and_last_layers_cannot_be_another(placement):
    with pytest.raises(ValueError, match=f"placement='{placement}' stands for.*weight_bits=4.*"
                                         "Leave first_last out.*'residual'"):
        QuantSpec.from_dict({'activation': {'placement': placement},
                             'first_last': {'weight_bits': 4}})


def test_weights_alone_leave_nothing_to_round(net, plan_of):
    plan = plan_of(net, activation={'num_bits': None, 'placement': 'qdrop'})
    assert plan.streams == () and all(layer.activation.num_bits is None for layer in plan.layers)


def test_a_layer_that_gives_a_stream_quantizes_its_own_output(make_net, plan_of):
    """No module but the convolution (with its batch norm) gives what the addition reads."""
    def run(net, x):
        x = net.norm(net.stem(x))
        return net.head(net.conv(x) + x)
    plan = plan_of(make_net(run, stem=conv(3), norm=nn.BatchNorm2d(4), conv=conv(), head=conv()))
    assert plan.streams == (StreamPlan('stem', 3, ('conv',), on_layer=True),)
    assert {layer.name: layer.output for layer in plan.layers} == {
        'stem': OutputPlan(3, False), 'conv': None, 'head': None}


def test_where_no_module_gives_the_tensor_the_skip_stays_float_and_is_named(make_net, plan_of):
    def run(net, x):
        x = F.relu(net.stem(x) * 2)
        return net.head(net.conv(x) + x)
    net = make_net(run, stem=conv(3), conv=conv(), head=conv())
    plan = plan_of(net)
    assert plan.streams == () and plan.open_streams == ('conv',)
    assert plan_of(net, 'inputs').open_streams == ()


def test_a_module_called_twice_gives_no_stream_by_itself(make_net, plan_of):
    """The one around it does: both calls would share a scale, and one of them is no stream."""
    def run(net, x):
        x = net.relu(net.stem(x))
        return net.head(net.relu(net.conv(x) + x))
    plan = plan_of(make_net(run, stem=conv(3), conv=conv(), head=conv(), relu=nn.ReLU()))
    assert plan.streams == () and plan.open_streams == ('conv',)


def test_overrides_say_of_single_layers_whether_their_stream_is_quantized(net, plan_of):
    plan = plan_of(net, overrides=[
        {'match': 'blocks.1.conv1', 'activation': {'placement': 'inputs'}},
        {'match': 'blocks.2.conv1', 'activation': {'num_bits': 5}}])
    assert [(stream.name, stream.num_bits) for stream in plan.streams] == [
        ('pool', 3), ('blocks.1', 5)]


def test_a_plan_given_back_says_the_streams_and_can_be_edited(net, plan_of):
    value = plan_value(plan_of(net, 'brecq'))
    assert value['streams'] == [{'name': 'pool', 'num_bits': 8}, {'name': 'blocks.0',
                                'num_bits': 3}, {'name': 'blocks.1', 'num_bits': 3}]
    assert 'streams' not in plan_value(plan_of(net, 'inputs'))
    again = plan_of(net, 'inputs', plan=value)
    assert plan_value(again) == value
    value['streams'][0]['num_bits'], value['streams'][1]['num_bits'] = 6, None
    edited = plan_of(net, 'brecq', plan=value)
    assert [(stream.name, stream.num_bits, stream.readers) for stream in edited.streams] == [
        ('pool', 6, ()), ('blocks.1', 3, ('blocks.2.conv1',))]


def test_a_stream_that_there_is_not_is_named(net, plan_of):
    given = read_plan({'layers': [], 'streams': [{'name': 'block.0', 'num_bits': 3}]})
    with pytest.raises(ValueError, match="stream of 'block.0'.*'blocks.0'"):
        plan_of(net, plan=given)
