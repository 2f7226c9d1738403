"""What several runs showed is joined, and what one contradicts does not hold."""

import torch
from torch import nn

from mmbitsplit.models.surgery.fold_bn import foldable_batch_norms
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.models.watch.output_readers import Reading


def depending(net, x, times=1, also=False, other=False):
    x = net.stem(x)
    y = net.norm(x)
    for _ in range(times):
        y = net.loop(y.relu())
    if other:
        y = net.other(y)
    return net.end(y + x if also else y)


def make(make_net):
    return make_net(depending, stem=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4),
                    loop=nn.Conv2d(4, 4, 1), other=nn.Conv2d(4, 4, 1), end=nn.Conv2d(4, 2, 1))


def test_one_flow_is_itself(make_net, see, image):
    flow = see(make(make_net), image)
    assert merge_flows([flow]) is flow


def test_what_two_runs_showed_adds_up(make_net, see, image):
    net = make(make_net)
    merged = merge_flows([see(net, image), see(net, image[..., :4], times=3, other=True)])
    assert merged.order == ['stem', 'loop', 'other', 'end']
    assert merged.calls == dict(stem=1, loop=3, other=1, end=1)
    assert len(merged.stacks['loop']) == 3
    assert merged.feeds['loop'] == {'loop', 'other', 'end'}
    assert merged.sources['end'] == {'loop', 'other'}
    assert merged.readings['norm'] == {Reading('loop', True)}
    assert merged.output_sizes['stem'] == [2 * 4 * 10 * 12]  # of the larger image
    assert foldable_batch_norms(net, merged) == {'norm': 'stem'}


def test_a_norm_is_folded_only_where_every_run_allows_it(make_net, see, image):
    net = make(make_net)
    plain, also = see(net, image), see(net, image, also=True)
    assert foldable_batch_norms(net, plain) and not foldable_batch_norms(net, also)
    for flows in ([plain, also], [also, plain]):
        assert foldable_batch_norms(net, merge_flows(flows)) == {}


def test_a_norm_that_a_run_passes_by_is_not_folded(make_net, see, image):
    net = make_net(lambda net, x, norm=True: net.b(net.norm(net.a(x)) if norm else net.a(x)),
                   a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), b=nn.Conv2d(4, 2, 1))
    merged = merge_flows([see(net, image), see(net, image, norm=False)])
    assert foldable_batch_norms(net, merged) == {}


def test_flows_do_not_change_when_merged(make_net, see, image):
    net = make(make_net)
    flows = [see(net, image), see(net, image, times=2, also=True)]
    before = [str(flow) for flow in flows]
    merge_flows(flows).feeds['loop'].add('somewhere')
    assert [str(flow) for flow in flows] == before


def test_a_tensor_held_while_a_number_is_read_may_be_read_on_other_images(make_net, see, image):
    def held(net, x):
        y = net.a(x)
        z = net.norm(y)
        if z.mean() > 1e9:
            z = z + y
        return net.b(z)

    def gone(net, x):
        y = net.norm(net.a(x))
        return net.b(y if float(y.mean()) < 1e9 else -y)

    for run, folded in ((held, {}), (gone, {'norm': 'a'})):
        net = make_net(run, a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), b=nn.Conv2d(4, 2, 1))
        with torch.no_grad():
            assert foldable_batch_norms(net, see(net, image)) == folded
