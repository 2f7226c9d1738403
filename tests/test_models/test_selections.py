"""Which steps pick rows by values of layers, and which layers get what they pick."""

import pytest
import torch
from torch import nn


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def seen(flow):
    return {(str(selection), *layers) for selection, layers in flow.selections.items()}


@pytest.fixture
def rows(make_net):
    """A layer scores rows, a function picks some by the scores, another layer takes them."""
    def of(pick, **modules):
        return make_net(lambda net, x: net.head(
            pick(net.embed(x), net.score(net.embed(x))[..., 0])),
                        embed=nn.Linear(6, 6), score=nn.Linear(6, 1), head=nn.Linear(6, 3),
                        **modules)
    return of


X = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(1))


def picked(x, index):
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@pytest.mark.parametrize(('pick', 'step'), [
    (lambda x, s: picked(x, s.topk(5, 1).indices), 'topk'),
    (lambda x, s: picked(x, s.sort(1)[1][:, :5] % 20), 'sort'),
    (lambda x, s: picked(x, s.argsort(1)), 'sort'),  # how torch runs it
    (lambda x, s: x[torch.arange(2), s.argmax(1)], 'argmax'),
    (lambda x, s: x[s > 0], 'gt'),
    (lambda x, s: x[(s > 0).nonzero(as_tuple=True)], 'gt'),
    (lambda x, s: x.flatten(0, 1).index_select(0, s.flatten().topk(5)[1].flip(0)), 'topk'),
    (lambda x, s: x.masked_select((s > 0)[..., None]).view(-1, 6), 'gt'),
    (lambda x, s: torch.zeros_like(x).scatter(
        1, s.argsort(1)[..., None].expand_as(x), x).relu() + 1, 'sort'),
    (lambda x, s: x[:, (s[0].sigmoid() * 19).long()], 'conversion to integers'),
    (lambda x, s: torch.sort(x, 1)[0], 'sort'),
    (lambda x, s: x.topk(3, 1).values, 'topk'),
    (lambda x, s: nn.functional.embedding(s.argmax(1), torch.randn(20, 6)), 'argmax')])
def test_a_selection_that_reaches_a_layer(rows, see, pick, step):
    assert seen(see(rows(pick), X)) == {(f'{step} in forward', 'head')}


@pytest.mark.parametrize('pick', [
    lambda x, s: x * (s > 0)[..., None], lambda x, s: torch.where(s[..., None] > 0, x, -x),
    lambda x, s: x.masked_fill((s < 0)[..., None], 0.0), lambda x, s: x * s.argmax(1).view(2, 1, 1),
    lambda x, s: torch.nan_to_num(x).clamp(0, 1), lambda x, s: x.max(1)[0],
    lambda x, s: x if not bool(x.isnan().any()) else -x, lambda x, s: x[:, :5],
    lambda x, s: x[:, torch.randperm(20)], lambda x, s: nn.functional.max_pool1d(x, 1)])
def test_masks_and_constant_indices_pair_rows_as_before(rows, see, pick):
    assert seen(see(rows(pick), X)) == set()


def test_values_masked_in_place_are_no_selection(rows, see):
    def pick(x, s):
        x = x + 1
        x[x < 0] = 0
        return x
    assert seen(see(rows(pick), X)) == set()


def test_a_number_that_python_reads(rows, see):
    branch = rows(lambda x, s: x if bool(s.sum() > 0) else -x)
    assert seen(see(branch, X)) == {('gt in forward', 'head')}
    scale = rows(lambda x, s: x * float(x.max()))
    assert seen(see(scale, X)) == {('a number read by Python in forward', 'head')}


def test_a_selection_after_the_last_layer_is_nobodys(rows, see, make_net):
    net = make_net(lambda net, x: picked(net.head(x), net.score(x)[..., 0].topk(5, 1).indices),
                   score=nn.Linear(6, 1), head=nn.Linear(6, 6))
    assert seen(see(net, X)) == set()


def test_a_selection_by_the_image_alone_is_the_same_in_both_passes(make_net, see):
    net = make_net(lambda net, x: net.a(picked(x, x[..., 0].topk(5, 1).indices)),
                   a=nn.Linear(6, 6))
    assert seen(see(net, X)) == set()


class Chooser(nn.Module):

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(6, 1)

    def choose(self, x):
        index = [self.score(x)[..., 0].topk(5, 1)[1] for _ in range(1)][0]
        return picked(x, index)

    def forward(self, x):
        return self.choose(x)


def test_the_method_that_selects_is_named(make_net, see):
    net = make_net(lambda net, x: net.b(net.a(net.chooser(x).relu())), chooser=Chooser(),
                   a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    assert seen(see(net, X)) == {('topk in chooser.choose', 'a')}  # not b, a layer is between


def test_what_a_barrier_hides_is_replayed_and_not_told(make_net, see, decoding_barrier):
    net = make_net(lambda net, x: net.a(net.decode(net.score(x))), score=nn.Linear(6, 6),
                   a=nn.Linear(6, 6))
    net.decode = lambda y: picked(y, y[..., 0].topk(5, 1).indices)
    assert seen(see(net, X)) == {('topk in forward', 'a')}
    assert seen(see(net, X, barriers=[decoding_barrier(net)])) == set()
