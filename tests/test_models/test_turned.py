"""Layers and batch norms are quantized and folded where they stand, and come back whole."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from mmbitsplit.models import describe, rebuild
from mmbitsplit.models.layers.in_place import was
from mmbitsplit.models.layers.steps import IdentityNorm


class Own(nn.Conv2d):
    """A class with things of its own: an activation, a mode, a state, names that layers use."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.act, self.codes, self.seen = nn.PReLU(4), 'mine', []
        self.register_buffer('gain', torch.full((1,), 2.0))

    def forward(self, x):
        return self.act(super().forward(x) * self.gain)

    def train(self, mode=True):
        self.seen.append(mode)
        if not mode:
            self.weight.data  # noqa: B018 (as classes that merge weights do)
        return super().train(mode)

    def get_extra_state(self):
        return {'seen': len(self.seen)}

    def set_extra_state(self, state):
        assert 'seen' in state


def pruned(layer):
    prune.l1_unstructured(layer, 'weight', 0.3)
    return layer


LAYERS = {
    'plain': lambda: nn.Conv2d(3, 4, 3, padding='same'),
    'own class': lambda: Own(3, 4, 3),
    'weight norm by hooks': lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
    'spectral norm by hooks': lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
    'pruned': lambda: pruned(nn.Conv2d(3, 4, 3)),
    'weight norm': lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
}


def run(net, x):
    return net.last(net.norm(net.a(x)).relu())


@pytest.fixture(params=LAYERS)
def build(request, make_net):
    return lambda: make_net(run, a=LAYERS[request.param](), norm=nn.BatchNorm2d(4),
                            last=nn.Conv2d(4, 2, 1))


def kept(net):
    """All that others can see of the modules; what hooks make in each call is another each time."""
    return [(id(module), type(module),
             {name: id(value) for name, value in vars(module).items() if name != 'weight'},
             [list(vars(module)[kind].items()) for kind in (
                 '_forward_hooks', '_forward_pre_hooks', '_parameters', '_buffers', '_modules')])
            for module in net.modules()]


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_modules_stay_what_they_are_and_come_back_whole(build, make_ready, image, quantize_all):
    net, seen = build(), []
    kind = type(net.a)
    hook = net.last.register_forward_hook(lambda module, args, out: seen.append(module))
    net.a.mine = ['an attribute']
    expected, before, stood = net(image), kept(net), [net.a, net.norm, net.last]
    ready = make_ready(net, image)
    torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-4)
    assert [net.a, net.norm, net.last] == stood and seen[-1] is net.last is ready.layers['last']
    assert issubclass(kind, was(net.a)) and issubclass(was(net.a), nn.Conv2d)
    assert isinstance(net.norm, nn.BatchNorm2d) and net.norm.num_features == 4
    assert net.a.mine == ['an attribute'] and net.a.padding == stood[0].padding
    quantize_all(ready)
    quantized = net(image)
    assert not torch.allclose(quantized, expected, rtol=1e-4, atol=1e-4)
    for _ in range(2):
        ready.put_back()
        assert kept(net) == before
        torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-4)
        ready.put_in(ready.layers)
        assert torch.equal(net(image), quantized)
    hook.remove()
    assert not net.last._forward_hooks


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('copied', [copy.deepcopy, saved])
def test_copies_files_and_checkpoints_compute_the_same(copied, build, make_ready, image,
                                                       quantize_all):
    net = build()
    ready = make_ready(net, image)
    quantize_all(ready)
    wanted, state = net(image), net.state_dict()
    again = copied(net)
    assert torch.equal(again(image), wanted) and type(again.a) is type(net.a)
    assert again.state_dict().keys() == state.keys()
    assert not [name for name in state if name.startswith('a.') and name.split('.')[-1] not in (
        'bias', 'codes', 'weight_scale', 'input_scale', 'input_zero_point', 'constant0')]
    fresh = build()
    rebuild(fresh, describe(ready))
    fresh.train().eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(image), wanted) and type(fresh.a) is type(net.a)
    with torch.no_grad():
        again.to(torch.float64)
        assert again(image.double()).dtype == torch.float64


def test_a_forward_that_was_set_on_the_module_comes_back_too(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    plain = net.a.forward
    net.a.forward = lambda x: plain(x)
    before, forward = net(image), net.a.forward
    ready = make_ready(net, image)
    assert 'forward' not in vars(net.a) and torch.equal(net(image), before)
    ready.put_back()
    assert net.a.forward is forward


def test_a_folded_norm_is_an_identity_without_state(make_net, make_ready, image):
    net = make_net(run, a=nn.Conv2d(3, 4, 3), norm=nn.SyncBatchNorm(4), last=nn.Conv2d(4, 2, 1))
    make_ready(net, image)
    x = torch.randn(1, 4, 2, 2)
    assert net.norm(x) is x and isinstance(net.norm, (IdentityNorm, nn.Identity))
    assert not [name for name in net.state_dict() if name.startswith('norm.')]
    net.load_state_dict(net.state_dict())
