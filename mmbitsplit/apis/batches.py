"""Calibration inputs as users have them, made into what a model is called with."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmbitsplit.models.surgery.undo import as_it_was_on_error

WANTED = ('batches: a sequence of inputs, each a tensor, or a tuple or dict of arguments of the '
          'model; run=lambda model, batch: ... says how to run the model on anything else')


def read_batches(batches: Any) -> Sequence[Any]:
    """Lists the batches, each read once: a shuffling DataLoader gives other images every time.

    Args:
        batches: A sequence, or anything else that can be gone over, such as a DataLoader, a
            Dataset or a generator, which must come to an end.

    Raises:
        ValueError: It is one input instead of several, or nothing of the kind.
    """
    if isinstance(batches, (Tensor, np.ndarray)):
        raise ValueError(
            f'batches is {_describe(batches)}, which does not say what its first dimension counts. '
            'For images give a list of parts, such as images.split(8) of a tensor; for batches '
            f'list(batches). {WANTED}.')
    if isinstance(batches, (str, bytes, Mapping)) or not (
            isinstance(batches, Iterable) or hasattr(batches, '__getitem__')):
        raise ValueError(f'batches is {_describe(batches)}. {WANTED}.')
    if isinstance(batches, Sequence):
        return batches
    # A torch Dataset says where it ends by its length alone.
    return list(batches if isinstance(batches, Iterable) else map(
        batches.__getitem__, range(len(batches))))


def arrays_to_tensors(batches: Sequence[Any], model: nn.Module) -> list[Any]:
    """The batches with NumPy arrays as tensors, real numbers in the model's precision.

    Mappings that are no dict (a tokenizer's ``BatchEncoding``) become one.
    """
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()),
                 torch.get_default_dtype())

    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return value
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    return [tree_map(convert, dict(batch) if isinstance(batch, Mapping)
                     and not isinstance(batch, dict) else batch) for batch in batches]


class ModelCall:
    """Calls a model with a batch, as ``run`` where the user gives none.

    A batch is a tensor, or a tuple, list or dict of arguments. Of a pair that a model of one
    argument is given, such as (images, labels), it gets the first.
    """

    def __init__(self) -> None:
        self._failing: Any = None
        self._has_run = False

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns.

        Raises:
            ValueError: The model cannot be called with this batch.
        """
        args, kwargs = model_arguments(model, batch)
        self._failing = batch
        output = model(*args, **kwargs)
        self._has_run = True
        return output

    def refusal(self, model: nn.Module) -> str | None:
        """After an error: what the model alone says to the batch, where none ran through."""
        if self._has_run or self._failing is None:
            return None
        try:
            with as_it_was_on_error(model), torch.no_grad():
                self(model.eval(), self._failing)
                raise _RanThrough
        except _RanThrough:
            return None
        except Exception as error:
            return (f'The model cannot be run on a batch that is {_describe(self._failing)}: '
                    f'{type(error).__name__}: {error}. {WANTED}.')


class _RanThrough(Exception):
    """Undoes what a call did to the model although nothing went wrong."""


def model_arguments(model: nn.Module, batch: Any) -> tuple[tuple, dict[str, Any]]:
    """Arguments that a batch stands for.

    Raises:
        ValueError: It stands for none, or the model does not take them.
    """
    if isinstance(batch, Tensor):
        args, kwargs = (batch,), {}
    elif isinstance(batch, Mapping):
        args, kwargs = (), dict(batch)
    elif isinstance(batch, (tuple, list)):
        args, kwargs = tuple(batch), {}
    else:
        raise ValueError(f'A batch is {_describe(batch)}. {WANTED}.')
    refusal = _refusal(model.forward, args, kwargs)
    if refusal is not None and len(args) == 2 and _refusal(model.forward, args[:1], {}) is None:
        args, refusal = args[:1], None  # (images, labels)
    if refusal is not None:
        raise ValueError(f'A batch is {_describe(batch)}, and {type(model).__name__}.forward does '
                         f'not take it: {refusal}. {WANTED}.')
    return args, kwargs


def _refusal(forward: Callable, args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong with the number or names of arguments; ``None`` where nothing is."""
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # written in C: the call itself will tell
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def _describe(value: Any) -> str:
    """What somebody gave, in a few words."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = 'tensor' if isinstance(value, Tensor) else 'array'
        return f'one {kind} of shape {tuple(value.shape)}'
    if isinstance(value, Mapping):
        return f'a dict of {", ".join(map(str, value)) or "nothing"}'
    if isinstance(value, (tuple, list)):
        parts = ', '.join(_describe(part) for part in value[:4])
        return f'a {type(value).__name__} of {len(value)}' + (f' ({parts})' if value else '')
    return 'None' if value is None else f'of type {type(value).__name__}'
