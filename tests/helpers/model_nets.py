"""Small networks written in a line, and ways to watch and prepare them."""

from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mmbitsplit.functional import round_weight, rows_to_weight, weight_scale
from mmbitsplit.models import DataFlow, PreparedModel, apply, prepare, watch
from mmbitsplit.planning import make_plan
from mmbitsplit.structures import LayerSolution, QParams, QuantSpec

__all__ = ['_settle', 'decoding_barrier', 'image', 'make_net', 'make_ready', 'one_thread',
           'quantize_all', 'see']  # fixtures: what a folder's conftest takes


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """These tensors are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Modules by name, and a function of (net, inputs) that runs them."""

    def __init__(self, run: Callable, **modules: nn.Module):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    """Builds a net in eval mode with batch norms that do something."""
    def make(run: Callable, **modules: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return settle(Net(run, **modules))
    return make


def settle(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name in ('running_mean', 'weight', 'bias'):
            value = getattr(module, name, None)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and value is not None:
                value.data.normal_().add_(0.3)
        if getattr(module, 'running_var', None) is not None:
            module.running_var.uniform_(0.3, 2)
    return model.eval()


@pytest.fixture(name='settle')
def _settle() -> Callable[[nn.Module], nn.Module]:
    """Gives every batch norm of a model statistics that do something; eval mode."""
    return settle


@pytest.fixture
def see() -> Callable[..., DataFlow]:
    """Watches a model run on some inputs."""
    def run(model: nn.Module, *args, barriers=(), **kwargs) -> DataFlow:
        return watch(model, lambda: model(*args, **kwargs), barriers=barriers)
    return run


@pytest.fixture
def make_ready(see) -> Callable[..., PreparedModel]:
    """Watches and prepares a model; the spec is given as a dict."""
    def run(model: nn.Module, *args, spec: dict | None = None) -> PreparedModel:
        flow = see(model, *args)
        return prepare(model, flow, make_plan(model, flow, QuantSpec.from_dict(spec or {})))
    return run


def round_all(ready: PreparedModel) -> None:
    """Plain rounding with one unsigned scale an input; the stem's image stays float."""
    for plan in ready.plan.layers:
        layer, bits = ready.layers[plan.name], plan.weight.num_bits
        qparams = None if plan.activation.num_bits is None else QParams(
            torch.tensor([0.02]), torch.tensor([3.0]), 0, 2 ** plan.activation.num_bits - 1)
        rows = layer.float_rows() * (1.0 if qparams is None else qparams.scale)
        scale = weight_scale(rows, bits)
        codes = rows_to_weight(round_weight(rows, scale, bits), layer.geometry).to(torch.int8)
        apply(layer, LayerSolution(codes=codes, num_bits=bits, weight_scale=scale.reshape(-1),
                                   bias=layer.product_bias, qparams=qparams))


@pytest.fixture
def quantize_all() -> Callable[[PreparedModel], None]:
    """Quantizes all layers of a prepared model without looking at images."""
    return round_all


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoding_barrier() -> Callable[[nn.Module], Callable]:
    """Makes the barrier around a net's function ``decode``."""
    def of(net: nn.Module) -> Callable:
        @contextmanager
        def barrier(blind):
            original = net.decode

            def decode(y):
                with blind():
                    return original(y)
            net.decode = decode
            yield
            net.decode = original
        return barrier
    return of
