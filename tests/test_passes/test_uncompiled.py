"""Models that ``torch.compile`` wraps: calibrated as written, then compiled anew."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.passes.uncompiled import uncompiled

IMAGES = [torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
          for seed in range(3)]
COMPILED = []


def counting(graph, example_inputs):
    """A backend that runs the graph as it is; compiling is what must not happen."""
    COMPILED.append(graph)
    return graph.forward


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def wanted():
    torch.manual_seed(0)
    plain = Net().eval()
    report = quantize_model(plain, IMAGES)
    with torch.no_grad():
        return [layer.name for layer in report.layers], plain.state_dict(), plain(IMAGES[0])


def whole(net):
    return torch.compile(net, backend=counting)


def in_place(net):
    net.compile(backend=counting)
    return net


def part(net):
    net.body = torch.compile(net.body, backend=counting)
    return net


def single_layer(net):
    net.head = torch.compile(net.head, backend=counting)
    return net


def single_layer_in_place(net):
    net.head.compile(backend=counting)
    return net


def function(net):
    net.forward = torch.compile(net.forward, backend=counting)
    return net


@pytest.mark.parametrize('compile, called_before', [
    (whole, True), (in_place, False), (part, True), (function, False), (single_layer, True),
    (single_layer_in_place, True)])
def test_codes_are_those_of_the_model_as_written(compile, called_before, net, wanted):
    torch._dynamo.reset()
    model = compile(net)
    names, state, output = wanted
    with torch.no_grad():
        if called_before:
            model(IMAGES[0])
        COMPILED.clear()
        report = quantize_model(model, IMAGES)
        assert not COMPILED  # minutes, where it is
        assert [layer.name.replace('._orig_mod', '') for layer in report.layers] == names
        assert all('_orig_mod' not in layer.name for layer in report.layers) \
            or compile in (part, single_layer)
        ours = {name.replace('_orig_mod.', ''): value for name, value in model.state_dict().items()}
        assert all(torch.equal(ours[name], value) for name, value in state.items())
        assert torch.allclose(model(IMAGES[0]), output, atol=1e-5)
        assert COMPILED  # again, by itself


def test_a_torch_that_cannot_run_them_uncompiled_is_named(net, monkeypatch):
    net.body = torch.compile(net.body, backend=counting)
    monkeypatch.delattr(torch.compiler, 'set_stance')
    with pytest.raises(ValueError, match='Quantize the model first and compile it then'):
        quantize_model(net, IMAGES)


def test_threads_that_end_in_the_order_they_began_leave_torch_compiling(net):
    def stance():
        return torch._dynamo.eval_frame._stance.stance

    torch.compile(net)
    first, second = uncompiled(net), uncompiled(net)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert stance() == 'force_eager'  # the second is on its way
    second.__exit__(None, None, None)
    assert stance() == 'default'
