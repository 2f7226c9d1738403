"""Opens the modules of a model, opens those of another alike, and closes them again."""

from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmbitsplit.models.layers.in_place import become, has, revert
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import must_be_called
from mmbitsplit.models.opening.decide import decide
from mmbitsplit.models.opening.find_calls import find_calls
from mmbitsplit.models.opening.opened_module import OpenedCalls, Openings
from mmbitsplit.models.opening.rows import View, parameter_of
from mmbitsplit.models.opening.trial import try_openings
from mmbitsplit.models.watch.closed_call import ClosedCall


@dataclass(frozen=True)
class Opened:
    """A model whose calls that multiply are opened.

    Args:
        model: The model, changed in place.
        closed: Calls that multiply activations and stay as they are.
    """

    model: nn.Module
    closed: tuple[ClosedCall, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What ``reopen`` needs, in plain values."""
        return describe_opened(self.model)

    def close(self) -> None:
        """Makes the model what it was. What children have become since is lost."""
        for module in opened_modules(self.model).values():
            close_module(module)


def open_calls(model: nn.Module, run: Callable[[], Any], *, inputs: Any = None,
               closed: Container[str] = (), hidden: Sequence[str] = (),
               around: Callable[[], AbstractContextManager] = nullcontext) -> Opened:
    """Gives modules children for what their own forwards multiply.

    The model computes what it did, up to the order of summation. It runs twice: what is put in is
    compared with what was there, module by module, and taken out again where it differs.

    Args:
        model: In eval mode, changed in place. Modules that are open already stay as they are.
        run: Runs it on one batch.
        inputs: The batch.
        closed: Names of modules that are left alone.
        hidden: Names of methods inside of which calls are left alone: those of steps whose results
            are replayed, which may be called or not.
        around: Makes what stands around each of the runs.
    """
    with around():
        found = find_calls(model, run, inputs=inputs, hidden=hidden)
    chosen = decide(model, found, closed, tuple(hidden))
    modules = {name: model.get_submodule(name) for name in chosen}
    try:
        for name, openings in chosen.items():
            open_module(modules[name], openings)
        if chosen:
            with around():
                wrong = try_openings(modules, run)
            for name, function, reason in wrong:
                close_module(modules[name])
                found.close(name, function, reason)
    except BaseException:
        for module in modules.values():
            close_module(module)
        raise
    return Opened(model, tuple(found.closed))


def opened_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that are open, by name."""
    return {name: module for name, module in model.named_modules() if has(module, OpenedCalls)}


def describe_opened(model: nn.Module) -> dict[str, Any]:
    """What ``reopen`` needs to open another model alike, in plain values; empty for a model
    without open modules."""
    return {name: {'rows': module._openings.rows, 'children': module._openings.children,
                   'hidden': list(module._openings.hidden)}
            for name, module in opened_modules(model).items()}


def reopen(model: nn.Module, description: dict[str, Any]) -> Opened:
    """Opens a model as another one was.

    Args:
        model: As that one was before, freshly built for example; changed in place.
        description: From ``describe_opened``.

    Raises:
        ValueError: The model lacks a module or a parameter; it is as it was.
    """
    modules = dict(model.named_modules())
    done: list[nn.Module] = []
    try:
        for name, row in description.items():
            if name not in modules:
                raise ValueError(f"The model has no module '{name}', whose products are opened: "
                                 'it is of another architecture.')
            if has(modules[name], OpenedCalls):
                continue
            try:
                open_module(modules[name], Openings(
                    name, row['rows'], row['children'], tuple(row['hidden'])))
            except (ValueError, AttributeError) as error:
                raise ValueError(f"Module '{name}', whose products are opened: {error}") from error
            done.append(modules[name])
    except ValueError:
        for module in done:
            close_module(module)
        raise
    return Opened(model)


def open_module(module: nn.Module, openings: Openings) -> None:
    """Puts children into a module and sends its calls to them.

    Raises:
        ValueError: It lacks a parameter of the description.
        AttributeError: It lacks a layer of the description.
    """
    made = {name: module.get_submodule(name) if row['make'] == 'called' else _child(module, row)
            for name, row in openings.children.items()}
    taken = openings.views().keys()
    openings = replace(
        openings, order=tuple(module._parameters),
        shapes={name: tuple(module._parameters[name].shape) for name in taken},
        originals={name: module._parameters[name] for name in taken})
    for name, child in made.items():
        if openings.children[name]['make'] == 'called':
            vars(child)['opened_call'] = True  # tells ``layer_kind``: it is called from here on
        else:
            module.add_module(name, child.train(module.training))
    for name in taken:
        del module._parameters[name]
    module._openings = openings
    become(module, OpenedCalls)
    # Parents with a fused path would not call it (nn.TransformerEncoderLayer).
    module.register_forward_pre_hook(must_be_called)


def close_module(module: nn.Module) -> None:
    """Takes ``open_module`` back; nothing where the module is not open."""
    if not has(module, OpenedCalls):
        return
    openings = module._openings
    revert(module, OpenedCalls)
    del module._openings
    for name, made in openings.children.items():
        if made['make'] == 'called':
            vars(module.get_submodule(name)).pop('opened_call', None)
        else:
            del module._modules[name]
    parameters = {**module._parameters, **openings.originals}
    module._parameters.clear()
    module._parameters.update((name, parameters[name]) for name in openings.order
                              if name in parameters)
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is must_be_called:
            del module._forward_pre_hooks[key]


def release_originals(model: nn.Module) -> None:
    """Gives up the parameters that children hold now: there is no way back."""
    for module in opened_modules(model).values():
        module._openings.originals.clear()


def _child(module: nn.Module, row: dict[str, Any]) -> nn.Module:
    if row['make'] == 'product':
        return Product(row['softmax'])
    weight, bias = (_part(module, row[side]) for side in ('weight', 'bias'))
    if row['make'] == 'linear':
        child: nn.Module = nn.Linear(weight.size(1), weight.size(0), bias is not None,
                                     device='meta')
    else:
        options = {name: tuple(value) if isinstance(value, list) else value
                   for name, value in row['options'].items()}
        child = nn.Conv2d(weight.size(1) * options['groups'], weight.size(0),
                          tuple(weight.shape[2:]), bias=bias is not None, device='meta', **options)
    child.weight = weight
    if bias is not None:
        child.bias = bias
    return child


def _part(module: nn.Module, row: dict[str, Any] | None) -> nn.Parameter | None:
    """A parameter that is a part of the module's own, in the same memory."""
    if row is None:
        return None
    view = View.from_row(row)
    parameter = parameter_of(module, view)
    return nn.Parameter(view.look(parameter.detach()), requires_grad=parameter.requires_grad)
