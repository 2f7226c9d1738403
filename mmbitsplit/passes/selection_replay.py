"""Replays decisions inside a call: which rows are picked, not the values that are picked.

A two-stage DETR picks the best positions of a feature map by scores, and its decoder goes on with
their features. Where the quantized pass picked by its own scores, row 7 of the decoder would be
compared with row 7 of the float model, which stands for another place in the image. So the float
pass's indices are handed out, and the values at them are those of the quantized model.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

# Return values with their indices: both must tell of the same rows.
_ORDERING = {'topk': 2, 'sort': 1}  # where ``dim`` stands among the arguments
_OURS = __name__.split('.')[0]
_inside: ContextVar[Any] = ContextVar('inside a call whose decisions are replayed', default=None)


def replaying_selections(method: Callable, take: Callable[[list[Tensor]], list[Tensor]],
                         ) -> Callable:
    """Wraps a method so that what is decided inside goes through a function.

    Args:
        method: Layers inside it are called as ever.
        take: Given the indices, masks and other tensors without fractions that an operation on
            floating-point values made; returns what to go on with.
    """
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mode = _Selections(take)
        before = _inside.set(mode)
        try:
            with mode:
                return method(*args, **kwargs)
        finally:
            _inside.reset(before)
    return wrapped


def in_one_piece(method: Callable) -> Callable:
    """Wraps a method whose whole result is recorded: nothing inside is taken for itself."""
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before = _inside.set(method)
        try:
            return method(*args, **kwargs)
        finally:
            _inside.reset(before)
    return wrapped


def in_a_recorded_call() -> bool:
    """Whether a call is running whose whole result is recorded."""
    return _inside.get() is not None and not isinstance(_inside.get(), _Selections)


class _Selections(TorchFunctionMode):

    def __init__(self, take: Callable[[list[Tensor]], list[Tensor]]):
        super().__init__()
        self.take = take

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        # A mode is seen by all batches that share the thread, what a batch is inside of is not.
        if _inside.get() is not self or name == '__deepcopy__' or _called_by_us():
            return out
        inputs, (leaves, shape) = tree_flatten((args, kwargs))[0], tree_flatten(out)
        if not any(_is_tensor(leaf) and leaf.is_floating_point() for leaf in inputs):
            return out  # follows from what was decided before
        decided = [place for place, leaf in enumerate(leaves)
                   if _is_tensor(leaf) and not leaf.is_floating_point() and not leaf.is_complex()]
        if not decided:
            return out
        for place, taken in zip(decided, self.take([leaves[place] for place in decided])):
            own = leaves[place]
            leaves[place] = own.copy_(taken) if any(own is leaf for leaf in inputs) else taken
        if name in _ORDERING and len(leaves) == 2:
            dim = kwargs.get('dim', args[_ORDERING[name]] if len(args) > _ORDERING[name] else -1)
            values = kwargs.get('input', args[0] if args else None)
            leaves[0] = values.gather(dim, leaves[1]) if values.dim() else leaves[0]
        return tree_unflatten(leaves, shape)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _called_by_us() -> bool:
    """Whether calibration or a quantized layer calls torch, not the model."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get('__name__', '').split('.')[0]
        if module != torch.__name__ and frame.f_globals is not globals():
            return module == _OURS
        frame = frame.f_back
    return False
