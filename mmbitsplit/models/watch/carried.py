"""Finds the tensors that a value carries: in containers, dataclasses and any other object."""

from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MOST_DEPTH = 12  # of objects in objects
# Looked into by nobody: they hold code, or a model, or single values.
_CLOSED = (type, FunctionType, MethodType, ModuleType, nn.Module, str, bytes, int, float, complex,
           bool, type(None), Enum, torch.device, torch.dtype, torch.Generator)


def tensors_in(value: Any) -> list[Tensor]:
    """Lists the tensors in a value, such as what a model takes or returns.

    Args:
        value: A tensor, or anything that carries some: containers, dataclasses (a ModelOutput),
            objects with attributes (a DetDataSample), nested in each other.

    Returns:
        Each tensor object once, in the order of containers and attributes.
    """
    if isinstance(value, Tensor):
        return [value]
    return list(_look(value, set(), MOST_DEPTH))


def _look(value: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if isinstance(value, _CLOSED) or depth < 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts = list(value)
    else:
        parts = [getattr(value, name) for kind in type(value).__mro__
                 for name in _slots(kind) if hasattr(value, name)]
    for part in (*parts, *getattr(value, '__dict__', {}).values()):
        yield from _look(part, seen, depth - 1)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get('__slots__', ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ('__dict__', '__weakref__'))
