"""Reaches a module by its dotted name, and tells users' hooks from those that make weights."""

from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mmbitsplit.models.layers.in_place_base import must_be_called

# Hooks that make a layer's weight of its parts in each call.
_OF_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
HOOKS = ('_forward_hooks', '_forward_pre_hooks')


def get_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the submodule of a dotted name; the empty name is the model itself."""
    return model.get_submodule(name)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody hung forward hooks on a module."""
    return any(not makes_weight(hook) and hook is not must_be_called for kind in HOOKS
               for hook in getattr(module, kind).values())


def makes_weight(hook: Any) -> bool:
    """Whether a hook makes the weight of the module that it is called for."""
    return isinstance(hook, _OF_WEIGHTS)
