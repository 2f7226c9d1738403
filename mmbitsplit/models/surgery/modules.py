"""Reaches a module by its dotted name, and puts another in its place."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mmbitsplit.models.layers.quantized_layers import must_be_called

# Hooks that make a layer's weight of its parts, which the layer put in its place does not have.
_OF_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
_HOOKS = ('_forward_hooks', '_forward_pre_hooks')
_KINDS_OF_HOOKS = ('_forward_hooks_with_kwargs', '_forward_hooks_always_called',
                   '_forward_pre_hooks_with_kwargs')


def get_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the submodule of a dotted name; the empty name is the model itself."""
    return model.get_submodule(name)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the submodule of a dotted name, under every name it is registered by.

    Raises:
        ValueError: The name is empty: nothing holds the model itself.
    """
    if not name:
        raise ValueError(f'The model itself is a {type(model).__name__}, which cannot be replaced; '
                         'wrap it, such as in nn.Sequential.')
    old = model.get_submodule(name)
    for parent in model.modules():
        for child_name, child in list(parent._modules.items()):  # with repeats, one parent's too
            if child is old:
                setattr(parent, child_name, module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody hung forward hooks on a module."""
    return any(True for _ in _hooks(module))


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Gives a module that takes another's place its forward hooks and attributes of its own.

    Parents read attributes of the layers they hold; those that the new module has are its own.
    Hooks are shared with the old module, so that the handles of the user's remove them.
    """
    if has_hooks(old) and not any(isinstance(hook, _OF_WEIGHTS)
                                  for kind in _HOOKS for hook in getattr(old, kind).values()):
        for kind in (*_HOOKS, *_KINDS_OF_HOOKS):
            getattr(old, kind).update(getattr(new, kind))
            setattr(new, kind, getattr(old, kind))
    else:  # those that make the old module's weight stay with it
        handed = set()
        for kind, key, hook in _hooks(old):
            getattr(new, kind)[key] = hook
            handed.add(key)
        for kind in _KINDS_OF_HOOKS:
            getattr(new, kind).update(
                {key: value for key, value in getattr(old, kind).items() if key in handed})
    for name, value in vars(old).items():
        if not name.startswith('_') and not hasattr(new, name):
            setattr(new, name, value)


def _hooks(module: nn.Module) -> Iterator[tuple[str, int, Any]]:
    for kind in _HOOKS:
        for key, hook in getattr(module, kind).items():
            if not isinstance(hook, _OF_WEIGHTS) and hook is not must_be_called:
                yield kind, key, hook
