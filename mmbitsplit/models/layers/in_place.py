"""Turns a module into one of another class without making another module.

Whoever holds the module goes on holding it: hooks, attributes, children and its place in lists are
its own. Its class becomes a subclass of a mixin and of its own class, made once for each pair, so
that ``isinstance`` says what it said, and files and copies know how to make it again.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_MIXIN, _OWN = '_in_place_mixin', '_in_place_own'


def become(module: nn.Module, mixin: type) -> None:
    """Gives a module a mixin: what the mixin defines comes before what its own class defines.

    Args:
        module: Changed in place; one that has the mixin already stays as it is. Mixins stack.
        mixin: A class that can be imported by its name. ``mixin.in_place_name`` is what stands
            before the name of the module's class, the mixin's own name where there is none.
    """
    if not has(module, mixin):
        module.__class__ = in_place_class(mixin, type(module))


def revert(module: nn.Module, mixin: type) -> None:
    """Takes ``become`` back, whichever mixins came on top since; nothing where it has not got it.

    Args:
        module: Changed in place.
        mixin: As given to ``become``.
    """
    if has(module, mixin):
        module.__class__ = _without(type(module), mixin)


def has(module: nn.Module, mixin: type) -> bool:
    """Whether ``become`` gave a module this mixin."""
    return mixin in mixins(module)


def was(module: nn.Module) -> type:
    """The class of a module before any ``become``."""
    return _classes(type(module))[-1]


def mixins(module: nn.Module) -> list[type]:
    """The mixins of a module, the latest first."""
    return [vars(kind)[_MIXIN] for kind in _classes(type(module))[:-1]]


@functools.cache
def in_place_class(mixin: type, own: type) -> type:
    """The class of a module of class ``own`` with a mixin; always the same one."""
    name = vars(mixin).get('in_place_name', mixin.__name__) + own.__name__
    return type(own)(name, (mixin, own), {
        '__module__': mixin.__module__, '__qualname__': name, '__doc__': mixin.__doc__,
        '__reduce_ex__': _reduced, _MIXIN: mixin, _OWN: own})


def _classes(kind: type) -> list[type]:
    """A class, and those that it was made of by ``in_place_class``; the module's own is last."""
    found = [kind]
    while _OWN in vars(found[-1]):
        found.append(vars(found[-1])[_OWN])
    return found


def _without(kind: type, mixin: type) -> type:
    """A class of ``in_place_class`` without one of its mixins."""
    top, own = vars(kind)[_MIXIN], vars(kind)[_OWN]
    return own if top is mixin else in_place_class(top, _without(own, mixin))


def _reduced(self: Any, protocol: int) -> tuple:
    """As its own class has it copied and pickled; nobody finds the made one by its name."""
    *made, own = _classes(type(self))
    make, args, *rest = super(made[-1], self).__reduce_ex__(max(2, protocol))
    args = tuple(own if arg is type(self) else arg for arg in args)
    return (_made_again, (tuple(reversed(mixins(self))), make, args), *rest)


def _made_again(kinds: tuple[type, ...], make: Callable, args: tuple) -> Any:
    """Makes a module as its own class says, and gives it its mixins, the first one first."""
    module = make(*args)
    for mixin in kinds:
        become(module, mixin)
    return module
