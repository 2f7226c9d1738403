"""Reaches a module by its dotted name, and puts another in its place."""

from torch import nn


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
