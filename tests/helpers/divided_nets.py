"""Nets made of functions, and their units."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from mmbitsplit.models import watch
from mmbitsplit.models.surgery.fold_bn import foldable_batch_norms
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.planning import find_units
from mmbitsplit.planning.request_plan import make_plan
from mmbitsplit.structures import QuantSpec, Unit


class Part(nn.Module):
    """Modules by name, and a function of (part, inputs) that runs them."""

    def __init__(self, run: Callable, **modules: nn.Module):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(channels: int = 4) -> nn.Module:
    """A layer that keeps four channels."""
    return nn.Conv2d(channels, 4, 3, padding=1)


def divide(model: nn.Module, batches: Sequence[Any], *, barriers: Iterable = (),
           run: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
           **options: Any) -> tuple[Unit, ...]:
    """Watches a model on batches, plans its layers and finds its units."""
    model = model.eval()
    flow = merge_flows([watch(model, lambda batch=batch: run(model, batch), inputs=batch,
                              barriers=barriers) for batch in batches])
    spec = QuantSpec.from_dict(dict(overrides=options.pop('overrides', [])))
    plan = make_plan(model, flow, spec, foldable_batch_norms(model, flow))
    units = find_units(flow, plan, overrides=spec.overrides, **options)
    placed = [layer for unit in units for layer in unit.layers]
    assert sorted(placed) == sorted(layer.name for layer in plan.layers)
    return units


def residual(part, x):
    return x + part.b(part.a(x).relu())


def in_a_row(part, x):
    for child in part.children():
        x = child(x)
    return x


def rectified(part, x):
    """No chain: a ReLU that is no module comes between."""
    return part.b(part.a(x).relu())


def two_in(net, x):
    y = net.stem(x)
    return net.last(net.part(y, y.relu()))


def block(run=residual, **modules):
    return Part(run, **(modules or dict(a=conv(), b=conv())))


def net(run=None, **modules):
    """Calls a stem, its own parts one after another and a last layer."""
    return Part(run or in_a_row, stem=conv(), **modules, last=conv())


def shapes(units):
    """Modules of the units that are more than a layer."""
    return [unit.modules for unit in units if len(unit.layers) > 1]


def reasons(units, *layers):
    return {unit.reason for unit in units if unit.layers[0] in layers}
