"""Hooks on some modules for the time of a context."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(modules: Iterable[tuple[Any, nn.Module]], hook_for: Callable[[Any], Callable[..., Any]],
           *, before: bool = False, **options: bool) -> Iterator[None]:
    """Inside, each module calls a hook of its own with each forward.

    Args:
        modules: With a key each, as a name.
        hook_for: Makes the hook of a key.
        before: Whether it is called before the forward, not after it.
        options: See ``register_forward_hook`` and ``register_forward_pre_hook``.
    """
    handles = []
    try:
        for key, module in modules:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(hook_for(key), **options))
        yield
    finally:
        for handle in handles:
            handle.remove()
