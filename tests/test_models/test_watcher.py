"""What one run of a model shows: order, calls, and whose output feeds whom."""

import numpy as np
import pytest
import torch
from torch import nn

from mmbitsplit.models.watch.data_flow import IMAGE
from mmbitsplit.models.watch.roles import layer_role


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def roles(flow):
    return {name: layer_role(name, flow) for name in flow.order}


def test_a_classifier(make_net, see, image):
    net = make_net(lambda net, x: net.fc(net.pool(net.b(net.a(x).relu()).relu()).flatten(1)),
                   fc=nn.Linear(4, 5), b=conv(), pool=nn.AdaptiveAvgPool2d(1), a=conv(3))
    flow = see(net, image)
    assert flow.order == ['a', 'b', 'fc']  # of the calls, not of the registration
    assert flow.calls == {'a': 1, 'b': 1, 'fc': 1}
    assert flow.sources == {'a': {IMAGE}, 'b': {'a'}, 'fc': {'b'}}
    assert flow.feeds == {'a': {'b'}, 'b': {'fc'}}
    assert flow.unlike_torch == {}
    assert roles(flow) == {'a': 'first', 'b': 'inner', 'fc': 'last'}


def test_two_heads_on_one_trunk(make_net, see, image):
    def run(net, x):
        trunk = net.trunk(x).relu()
        hidden = net.hidden(trunk).relu()
        return {'cls': net.cls(hidden).sigmoid(), 'reg': [net.reg(trunk) * 4]}
    flow = see(make_net(run, trunk=conv(3), hidden=conv(), cls=conv(), reg=conv()), image)
    assert flow.feeds == {'trunk': {'hidden', 'reg'}, 'hidden': {'cls'}}
    assert roles(flow) == {'trunk': 'first', 'hidden': 'inner', 'cls': 'last', 'reg': 'last'}


def test_a_residual_block_that_adds_in_place(make_net, see, image):
    def run(net, x):
        identity = net.a(x)
        identity = torch.nn.functional.relu(identity, inplace=True)
        out = net.b(identity)
        out += identity
        return net.c(out.relu_())
    flow = see(make_net(run, a=conv(3), b=conv(), c=conv()), image)
    assert flow.sources == {'a': {IMAGE}, 'b': {'a'}, 'c': {'a', 'b'}}
    assert roles(flow) == {'a': 'first', 'b': 'inner', 'c': 'last'}


def test_a_head_that_is_called_on_two_levels(make_net, see, image):
    def run(net, x):
        fine = net.a(x)
        coarse = net.b(fine)
        return [net.head(level) for level in (fine, coarse[..., ::2])]
    flow = see(make_net(run, a=conv(3), b=conv(), head=conv()), image)
    assert flow.order == ['a', 'b', 'head']
    assert flow.calls == {'a': 1, 'b': 1, 'head': 2}
    assert flow.sources['head'] == {'a', 'b'}
    assert roles(flow)['head'] == 'last'


def test_a_layer_that_feeds_itself_can_still_be_last(make_net, see, image):
    flow = see(make_net(lambda net, x: net.b(net.b(net.a(x))), a=conv(3), b=conv()), image)
    assert flow.feeds == {'a': {'b'}, 'b': {'b'}}
    assert roles(flow) == {'a': 'first', 'b': 'last'}


@pytest.mark.parametrize('between', [
    lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), lambda x: x.flatten(2).view(x.shape),
    lambda x: x[:, 1:3].repeat(1, 2, 1, 1), lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: (x.double() / 2).float(), lambda x: x * x.mean(), lambda x: x.clone(),
    lambda x: torch.zeros_like(x).copy_(x), lambda x: x.softmax(1).detach()])
def test_sources_pass_through_operations(make_net, see, image, between):
    net = make_net(lambda net, x: net.b(between(net.a(x))), a=conv(3), b=conv())
    assert see(net, image).sources['b'] == {'a'}


def test_the_image_reaches_past_operations_but_not_past_layers(make_net, see, image):
    def run(net, x):
        normed = (x - x.mean()) / x.std()
        return net.c(torch.cat([net.a(normed), normed], 1)) + net.b(normed)
    flow = see(make_net(run, a=conv(3), b=conv(3), c=conv(7)), image)
    assert flow.sources == {'a': {IMAGE}, 'b': {IMAGE}, 'c': {IMAGE, 'a'}}
    assert roles(flow) == {'a': 'first', 'b': 'first+last', 'c': 'last'}


def test_parameters_and_constants_have_no_sources(make_net, see, image):
    net = make_net(lambda net, x: net.a(x).mean() + net.b(torch.ones(1, 4)),
                   a=conv(3), b=nn.Linear(4, 4))
    assert see(net, image).sources['b'] == set()


def test_indices_and_masks_carry_no_sources(make_net, see, image):
    def run(net, x):
        scores = net.a(x).flatten(1)
        return net.b(torch.eye(4)[scores.argmax(1) % 4]), net.c((scores[:, :4] > 0).long().float())
    flow = see(make_net(run, a=conv(3), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), image)
    assert flow.sources['b'] == flow.sources['c'] == set()
    assert roles(flow)['a'] == 'first+last'


def decoding_net(make_net):
    """Boxes of the first stage are refined by the second."""
    net = make_net(lambda net, x: net.second(net.decode(net.first(x))),
                   first=conv(3), second=nn.Linear(12, 4))
    net.decode = lambda scores: scores.mean((1, 2)) * 3
    return net


def test_a_barrier_cuts_the_flow_at_a_data_dependent_step(
        make_net, see, image, decoding_barrier):
    net = decoding_net(make_net)
    open_flow = see(net, image)
    assert open_flow.sources['second'] == {'first'}
    flow = see(net, image, barriers=[decoding_barrier(net)])
    assert flow.sources['second'] == set()
    assert roles(flow) == {'first': 'first+last', 'second': 'last'}
    assert see(net, image).sources['second'] == {'first'}  # the barrier is gone


def test_memory_that_is_used_again_brings_no_sources(make_net, see, image):
    """A tensor that no operation made, at the address of one that is gone."""
    buffer = np.ones((2, 4), dtype=np.float32)

    def run(net, x):
        torch.from_numpy(buffer).mul_(net.a(x).mean())
        buffer[:] = 1
        return net.b(torch.from_numpy(buffer))
    flow = see(make_net(run, a=conv(3), b=nn.Linear(4, 4)), image)
    assert flow.sources['b'] == set()


class UnseenKernel(nn.Module):
    """Stands for a compiled operation that no dispatch mode sees."""

    def forward(self, x):
        return torch.from_numpy(np.array(x.detach().numpy()) * 2)


def test_a_leaf_module_passes_sources_even_when_its_operation_is_not_seen(make_net, see, image):
    net = make_net(lambda net, x: net.b(net.kernel(net.a(x))), a=conv(3), b=conv(),
                   kernel=UnseenKernel())
    assert see(net, image).sources['b'] == {'a'}


def test_inputs_given_by_name(make_net, see, image):
    net = make_net(lambda net, *, img, other: net.b(input=net.a(input=img)) + other,
                   a=conv(3), b=conv())
    flow = see(net, img=image, other=1)
    assert flow.sources == {'a': {IMAGE}, 'b': {'a'}}


def test_the_module_calls_around_each_layer_call(make_net, see, image):
    inner = make_net(lambda net, x: net.conv(x), conv=conv())
    flow = see(make_net(lambda net, x: net.block(net.block(net.stem(x))), stem=conv(3),
                        block=nn.Sequential(nn.ReLU(), inner)), image)
    assert flow.stacks['stem'] == [(('', 1),)]
    assert flow.stacks['block.1.conv'] == [
        (('', 1), ('block', 1), ('block.1', 1)), (('', 1), ('block', 2), ('block.1', 2))]


@pytest.mark.parametrize(('run', 'after', 'readers'), [
    (lambda net, x: net.n(net.a(x)), 'a', {'n'}),
    (lambda net, x: net.n(net.a(x)[..., ::2]), None, {'operation', 'n'}),
    (lambda net, x: net.n(net.a(x).relu()), None, {'operation'}),
    (lambda net, x: net.n(net.a(x).relu_()), 'a', {'operation', 'n'}),
    (lambda net, x: net.n(net.a(x)) + net.n(x.repeat(1, 2, 1, 1)[:, :4]), None, {'n'}),
    (lambda net, x: net.n(net.a(x)) + net.n(net.b(x)), None, {'n'}),
    (lambda net, x: (lambda y: (y, net.n(y) + net.c(y)))(net.a(x)), 'a', {'n', 'c', 'output'})])
def test_which_layer_a_norm_follows_and_who_reads_that_layer(
        make_net, see, image, run, after, readers):
    flow = see(make_net(run, a=conv(3), b=conv(3), c=conv(), n=nn.BatchNorm2d(4)), image)
    assert flow.norm_after == {'n': after}
    assert flow.norm_calls['n'] in (1, 2)
    assert flow.consumers['a'] == readers


class Rolled(nn.Conv2d):

    def forward(self, x):
        return super().forward(x).roll(1, 2)


def test_layers_unlike_torch_are_listed(make_net, see, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=Rolled(3, 4, 1), b=conv())
    assert list(see(net, image).unlike_torch) == ['a']


def test_layers_never_called_are_not_in_the_flow(make_net, see, image):
    flow = see(make_net(lambda net, x: net.a(x), a=conv(3), unused=conv()), image)
    assert flow.order == ['a']
    assert 'unused' not in flow.calls


@pytest.mark.parametrize('fail', [False, True])
def test_watching_leaves_the_model_as_it_was(make_net, see, image, fail):
    def run(net, x):
        out = net.norm(net.a(x))
        if net.fail:
            raise RuntimeError('no boxes')
        return out
    net = make_net(run, a=conv(3), norm=nn.BatchNorm2d(4))
    net.fail = False
    before, state = net(image), {k: v.clone() for k, v in net.state_dict().items()}
    net.fail = fail
    if fail:
        with pytest.raises(RuntimeError, match='no boxes'):
            see(net, image)
    else:
        see(net, image)
    net.fail = False
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.equal(net(image), before)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def maps(*counts):
    """Bytes of so many feature maps of four channels, one of each size given in pixels."""
    return sum(2 * 4 * pixels * 4 for pixels in counts)


FULL, HALF = 10 * 12, 5 * 6


def test_what_a_module_returns(make_net, see, image):
    """The layers next upstream of what its calls return; leaves are not listed."""
    block = make_net(lambda net, x: (net.second(net.first(x).relu()), x),
                     first=conv(), second=conv())

    def run(net, x):
        trunk = net.stem(x)
        deep, passed = net.block(trunk)
        return {'scores': net.head(deep + passed), 'raw': [x, torch.ones(2)]}
    flow = see(make_net(run, stem=nn.Sequential(conv(3), nn.ReLU()), block=block,
                        head=nn.Sequential(nn.Identity())), image)
    assert flow.returned == {'stem': {'stem.0'}, 'block': {'block.second', 'stem.0'},
                             'head': {'block.second', 'stem.0'},
                             '': {'block.second', 'stem.0', IMAGE}}


def test_what_a_module_returns_in_all_its_calls(make_net, see, image):
    block = nn.Sequential(nn.ReLU(), nn.Identity())
    flow = see(make_net(lambda net, x: net.block(net.a(x)) + net.block(net.b(x)), a=conv(3),
                        b=conv(3), block=block), image)
    assert flow.returned['block'] == {'a', 'b'}


def test_what_a_layer_between_hides_is_not_returned(make_net, see, image):
    block = nn.Sequential(conv(3), nn.ReLU(), conv())
    assert see(nn.Sequential(block, conv()), image).returned == {'0': {'0.2'}, '': {'1'}}


@pytest.mark.parametrize('use', [
    lambda y: y * (y > 0), lambda y: y[:, y.mean((0, 2, 3)).argmax()], lambda y: y.topk(2, 1)[0],
    lambda y: y if bool(y.sum() > 1e9) else -y, lambda y: y * float(y.max()), lambda y: y[y > 0],
    lambda y: y.round().long().float(), lambda y: y[y.isnan().logical_not().nonzero()[:, 0]],
    lambda y: y.relu() * (y.flatten(1).double().sum(1) > 0).view(-1, 1, 1, 1)])
def test_a_layer_whose_values_decide(make_net, see, image, use):
    """They become a mask, an index or a number, so what follows may depend on them unseen."""
    def run(net, x):
        return use(net.b(net.a(x).relu())).mean() + net.c(x)
    flow = see(make_net(run, a=conv(3), b=conv(), c=conv(3)), image)
    assert flow.deciding - {IMAGE} == {'b'}


@pytest.mark.parametrize('use', [
    lambda y: y.relu(), lambda y: y.softmax(1) * y.sigmoid(), lambda y: y[:, 1:3, ::2],
    lambda y: y.view(2, -1).sum(1), lambda y: torch.cat([y, y.amax(1, keepdim=True)], 1),
    lambda y: y / y.shape[1] + len(y), lambda y: y.double().clamp(min=0),
    lambda y: nn.functional.interpolate(y, scale_factor=2.0, mode='bilinear'),
    lambda y: y.masked_fill(torch.ones(2, 1, 10, 12) > 0, 0.0),
    lambda y: nn.functional.batch_norm(y, torch.zeros(4), torch.ones(4))])
def test_a_layer_whose_values_only_flow(make_net, see, image, use):
    flow = see(make_net(lambda net, x: use(net.a(x)), a=conv(3)), image)
    assert flow.deciding == set()


def test_a_mask_of_the_image_is_no_layers_decision(make_net, see, image):
    flow = see(make_net(lambda net, x: net.a(x) * (x[:, :1] > 0), a=conv(3)), image)
    assert flow.deciding == {IMAGE}


def test_output_sizes_of_every_call(make_net, see, image):
    down = nn.Conv2d(4, 5, 3, stride=2, padding=1)
    up = nn.ConvTranspose2d(5, 3, 2, stride=2)

    def run(net, x):
        levels = [net.a(x), net.a(x[..., ::2, ::2])]
        return [net.fc(net.up(net.down(level)).mean((2, 3))) for level in levels]
    flow = see(make_net(run, a=conv(3), down=down, up=up, fc=nn.Linear(3, 7)), image)
    assert flow.output_rows == {name: [2] * len(sizes)
                                for name, sizes in flow.output_sizes.items()}
    assert flow.output_sizes == {'a': [2 * 4 * FULL, 2 * 4 * HALF],
                                 'down': [2 * 5 * HALF, 2 * 5 * 9],
                                 'up': [2 * 3 * FULL, 2 * 3 * 36], 'fc': [14, 14]}


def live_bytes(flow):
    """Bytes alive at each layer."""
    return {name: sum(blocks) for name, blocks in flow.live_blocks.items()}


def test_bytes_alive_along_a_chain_are_the_layers_input(make_net, see, image):
    """The image and the parameters were there before; a convolution's own output dies."""
    flow = see(make_net(lambda net, x: net.c(net.b(net.a(x).relu()).relu_()),
                        a=conv(3), b=conv(), c=conv()), image)
    assert live_bytes(flow) == {'a': 0, 'b': maps(FULL), 'c': maps(FULL)}
    assert flow.peak_bytes == maps(FULL, FULL)  # a layer's or a ReLU's input and output


def test_bytes_alive_count_what_is_kept_for_later(make_net, see, image):
    def run(net, x):
        identity = net.a(x)
        out = net.b(identity.relu())  # relu's output dies in the call
        levels = [out, net.down(out)]
        return [net.head(level) for level in levels], identity
    flow = see(make_net(run, a=conv(3), b=conv(), down=nn.Conv2d(4, 4, 3, stride=2, padding=1),
                        head=conv()), image)
    # The head is called twice; its first output is alive when its second call begins.
    assert live_bytes(flow) == {'a': 0, 'b': maps(FULL, FULL), 'down': maps(FULL, FULL),
                               'head': maps(FULL, FULL, HALF, FULL)}
    assert flow.peak_bytes == maps(FULL, FULL, HALF, FULL, HALF)  # at the very end


@pytest.mark.parametrize(('between', 'kept'), [
    (lambda y: y.view(2, 4, -1).transpose(1, 2).transpose(1, 2).view(y.shape), maps(FULL)),
    (lambda y: (y, y[:, :1], y.flatten())[0], maps(FULL)),
    (lambda y: y[:, :, :1].expand_as(y), maps(FULL)),  # a view keeps its whole storage
    (lambda y: y.clone(), maps(FULL)), (lambda y: y.double().float(), maps(FULL)),
    (lambda y: torch.cat([y, y], 1)[:, :4], maps(FULL, FULL))])
def test_bytes_alive_are_those_of_storages(make_net, see, image, between, kept):
    flow = see(make_net(lambda net, x: net.b(between(net.a(x))), a=conv(3), b=conv()), image)
    assert live_bytes(flow)['b'] == kept


def test_views_of_what_was_there_before_hold_nothing(make_net, see, image):
    def run(net, x):
        half, weight = x[..., ::2], net.a.weight.flatten(1).t()
        return net.b(net.a(half)) + half[:, :1] + weight.sum()
    flow = see(make_net(run, a=conv(3), b=conv()), image)
    assert live_bytes(flow) == {'a': 0, 'b': maps(FULL // 2)}


def test_bytes_alive_are_those_of_this_run_only(make_net, see, image):
    """Whatever a net keeps from an earlier run is held already."""
    def run(net, x):
        net.kept = net.a(x)
        return net.b(net.kept)
    net = make_net(run, a=conv(3), b=conv())
    assert live_bytes(see(net, image)) == live_bytes(see(net, image)) == {'a': 0, 'b': maps(FULL)}
