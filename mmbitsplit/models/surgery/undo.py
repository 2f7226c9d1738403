"""Gives a model back as it was when what was begun with it does not come to its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def as_it_was_on_error(model: nn.Module) -> Iterator[None]:
    """An error or Ctrl-C inside leaves modules, hooks, flags and state as they were before.

    Args:
        model: Changed inside, in place.
    """
    before = ModelState(model)
    try:
        yield
    except BaseException:
        before.put_back()
        raise


class ModelState:
    """All that a model is now, to be put back later, also several times and in turn with others.

    What is taken away from modules meanwhile stays alive as long as this does. Buffers are copied,
    so that what a forward writes into them is taken back; weights are not, nothing here writes
    into them.

    Args:
        model: As it is to be again.
    """

    def __init__(self, model: nn.Module):
        self.modules = [_Kept(module) for module in model.modules()]
        self.gradients = [(value, value.requires_grad) for value in model.parameters()]
        self.buffers = [(value, value._version, value.detach().clone())
                        for value in model.buffers() if not value.is_inference()]
        self.generators = _generators()

    def put_back(self) -> None:
        """Makes the model what it was, with the random numbers that came next."""
        for module in self.modules:
            module.put_back()
        for parameter, wanted in self.gradients:
            parameter.requires_grad_(wanted)
        with torch.no_grad():
            for index, (buffer, version, value) in enumerate(self.buffers):
                if buffer._version != version:
                    buffer.copy_(value)
                    self.buffers[index] = buffer, buffer._version, value
        for device, state in self.generators.items():
            if device == 'cpu':
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)


class _Kept:
    """Class and attributes of a module, and the contents of those that are dicts."""

    def __init__(self, module: nn.Module):
        self.module, self.kind = module, type(module)
        self.attributes = dict(vars(module))
        # Handles of hooks know their dict: its contents are put back, not another dict. The dicts
        # of torch alone; what is in a dict of the user's may be meant to stay.
        self.contents = [(value, dict(value)) for name, value in self.attributes.items()
                         if name.startswith('_') and isinstance(value, dict)]

    def put_back(self) -> None:
        attributes = vars(self.module)
        attributes.clear()
        attributes.update(self.attributes)
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        for value, contents in self.contents:
            value.clear()
            value.update(contents)


def _generators() -> dict[Any, torch.Tensor]:
    """States of torch's generators, by device; of GPUs only where one has been used."""
    states: dict[Any, torch.Tensor] = {'cpu': torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.update(enumerate(torch.cuda.get_rng_state_all()))
    return states
