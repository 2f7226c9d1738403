"""A module whose calls are opened: what its forward multiplies, its children multiply."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmbitsplit.models.opening.attention import (
    bind_multi_head,
    multi_head,
    scaled_dot_product,
)
from mmbitsplit.models.opening.calls import MULTIPLIES, NAMES, bound
from mmbitsplit.models.opening.multiply import Multiply
from mmbitsplit.models.opening.rows import Row, View

CALL = nn.Module._call_impl.__code__  # what every call of a module runs through


class OpenedCallError(ValueError):
    """A call of an opened module does not do what the calls did that it was opened by.

    Args:
        name: Of the module.
        message: Says what.
    """

    def __init__(self, name: str, message: str):
        super().__init__(name, message)
        self.name, self.message = name, message

    def __str__(self) -> str:
        return (f"Module '{self.name}' {self.message}. Its products were opened by what it did on "
                'the first calibration batch, and every call must do the same; leave it closed '
                f"with overrides=[dict(match='{self.name}', skip=True)].")


@dataclass
class Openings:
    """What an opened module knows of its calls.

    Args:
        name: Of the module in its model.
        rows: What each call of its forward becomes, see ``rows``.
        children: What was put into it for them.
        hidden: Names of methods inside of which calls are not its own (steps that are replayed).
        originals: Its parameters that children hold now, as long as there is a way back.
        shapes: Of these parameters.
        order: Names of all its parameters before.
        compare: Called instead of the forward while it is tried, see ``trial``.
    """

    name: str
    rows: list[Row]
    children: dict[str, dict[str, Any]]
    hidden: tuple[str, ...] = ()
    originals: dict[str, nn.Parameter] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    compare: Any = None

    def views(self) -> dict[str, list[tuple[str, str, View]]]:
        """By parameter that children hold: (child, ``'weight'`` or ``'bias'``, the part)."""
        found: dict[str, list[tuple[str, str, View]]] = {}
        for child, made in self.children.items():
            for side in ('weight', 'bias'):
                if made.get(side) is not None:
                    view = View.from_row(made[side])
                    found.setdefault(view.parameter, []).append((child, side, view))
        return found


class OpenedCalls:
    """A mixin, given by ``in_place.become``: the n-th call that multiplies in the module's own
    forward is done by the child that was put in for it.

    Calls in modules that it calls are theirs. A parameter that children hold can still be read:
    it is made of theirs.
    """

    in_place_name = 'Opened'
    _openings: Openings

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.__bases__[0] is OpenedCalls:  # no other mixin on top of it
            cls.forward = _forward_of(cls)

    def __getattr__(self, name: str) -> Any:
        openings = self.__dict__.get('_openings')
        if openings is not None and name not in self.__dict__['_parameters'] \
                and name in openings.shapes:
            return _assembled(self, name)
        return super().__getattr__(name)

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        for name, value in self._openings.originals.items():
            with torch.no_grad():
                self._openings.originals[name] = nn.Parameter(fn(value), value.requires_grad)
        return self


def _forward_of(kind: type) -> Callable:
    """The forward of an opened class, with the signature of its own class's."""
    @functools.wraps(kind.__bases__[1].forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = super(kind, self).forward
        if _is_part_of_another(self, sys._getframe(1)):
            return own(*args, **kwargs)
        return (self._openings.compare or routed)(self, own, args, kwargs)
    return forward


def _is_part_of_another(module: nn.Module, frame: FrameType | None) -> bool:
    """Whether another opened module calls a forward as its own (``self.part.forward(x)``).

    What others put around the forward, such as a patched one, makes no difference.
    """
    while frame is not None and frame.f_code is not CALL:
        frame = frame.f_back
    caller = module if frame is None else frame.f_locals['self']
    return caller is not module and isinstance(caller, OpenedCalls)


def routed(module: nn.Module, forward: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    routing = _Routing(module, sys._getframe())
    try:
        with routing:
            output = forward(*args, **kwargs)
    finally:
        routing.frame = None  # which holds this function's variables
    routing.check()
    return output


class _Routing(TorchFunctionMode):
    """Sends the calls of one run of a module's forward to its children."""

    def __init__(self, module: nn.Module, frame: FrameType):
        super().__init__()
        self.module, self.openings = module, module._openings
        self.frame: FrameType | None = frame
        self.index = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in NAMES or not self._own():
            return func(*args, **kwargs)
        rows, name = self.openings.rows, NAMES[func]
        row = rows[self.index] if self.index < len(rows) else {'function': ''}
        self.index += 1
        if row['function'] != name:
            if not row['function']:
                raise OpenedCallError(self.openings.name, 'multiplies more often in a call than '
                                      f'the {len(rows)} times that were seen')
            raise OpenedCallError(self.openings.name, f'calls {name} where it called '
                                  f"{row['function']} before")
        return _DO[row['kind']](self.module, row, func, args, kwargs)

    def check(self) -> None:
        """The run is over; raises ``OpenedCallError`` where calls are missing."""
        if self.index < len(self.openings.rows):
            raise OpenedCallError(self.openings.name, f'multiplies {self.index} times in a call, '
                                  f'and {len(self.openings.rows)} times were seen')

    def _own(self) -> bool:
        return is_own(sys._getframe(2), self.frame, self.openings.hidden)


def is_own(frame: FrameType | None, own: FrameType | None, hidden: tuple[str, ...]) -> bool:
    """Whether code runs in a module's own forward, not in one that it calls.

    Args:
        frame: Of the code.
        own: That the forward was called in.
        hidden: See ``Openings``.
    """
    while frame is not None and frame is not own:
        if frame.f_code is CALL or frame.f_code.co_name in hidden:
            return False
        frame = frame.f_back
    return frame is not None


def _pass(module, row, func, args, kwargs):
    return func(*args, **kwargs)


def _product(module, row, func, args, kwargs):
    call = MULTIPLIES[func][1](args, kwargs)
    return _finished(call, module.get_submodule(row['child'])(call.a, call.b), added=True)


def _linear(module, row, func, args, kwargs):
    call, child = MULTIPLIES[func][1](args, kwargs), module.get_submodule(row['child'])
    if row['side'] == 'b':
        return _finished(call, child(call.a), row['added'])
    return _finished(call, child(call.b.transpose(-1, -2)).transpose(-1, -2), row['added'])


def _finished(call: Multiply, output: Tensor, added: bool) -> Tensor:
    if added and call.bias is not None:
        output = output + call.bias.to(output.dtype)
    return call.finish(output)


def _convolution(module, row, func, args, kwargs):
    given = bound(('input', 'weight', 'bias'), args, kwargs, bias=None)
    line = row['function'] == 'conv1d'  # its child takes maps of height 1
    x = given['input'].unsqueeze(2) if line else given['input']
    output = module.get_submodule(row['child'])(x)
    if row['added'] and given['bias'] is not None:
        output = output + given['bias'].to(output.dtype).view(-1, 1, 1)
    return output.squeeze(2) if line else output


def _attention(module, row, func, args, kwargs):
    return scaled_dot_product(args, kwargs, *(module.get_submodule(row[side])
                                              for side in ('qk', 'av')))


def _multi_head(module, row, func, args, kwargs):
    given = bind_multi_head(args, kwargs)
    if len(row['projections']) == 1 and not (
            given['query'] is given['key'] is given['value']):
        raise OpenedCallError(module._openings.name, 'attends to something else than its query, '
                              'and only self-attention was seen')
    return multi_head(given, [module.get_submodule(name) for name in row['projections']],
                      *(module.get_submodule(row[side]) for side in ('out', 'qk', 'av')))


_DO = {'pass': _pass, 'product': _product, 'linear': _linear, 'convolution': _convolution,
       'attention': _attention, 'multi_head': _multi_head}


def _assembled(module: nn.Module, name: str) -> Tensor:
    """A parameter made of what children hold of it."""
    openings = module._openings
    if name in openings.originals:
        return openings.originals[name]
    parts = [(getattr(module.get_submodule(child), side).detach(), view)
             for child, side, view in openings.views()[name]]
    whole = parts[0][0].new_empty(openings.shapes[name])
    for part, view in parts:
        view.look(whole).copy_(part)
    return whole
