"""A module of a model that has been quantized or folded in place, and the way back."""

from collections.abc import Callable
from inspect import get_annotations
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from mmbitsplit.models.layers.in_place import in_place_class
from mmbitsplit.models.surgery.modules import HOOKS, makes_weight

# What of a module is taken away with its weight, beside its class.
_STATE = ('_parameters', '_buffers', '_modules', '_non_persistent_buffers_set',
          '_state_dict_hooks', '_state_dict_pre_hooks', '_load_state_dict_pre_hooks',
          '_load_state_dict_post_hooks')


class Turned:
    """A module that has taken a class in place.

    Its parameters, buffers, children and hooks that make its weight are set aside; forward hooks
    of the user's, attributes and whoever holds it stay. ``put_back`` gives it back as it was.

    Args:
        module: Changed at once.
        mixin: What it becomes.
        begin: Called with the module, which has the mixin and no state, to give it some.

    Attributes:
        inside: Whether the module is what it became.
    """

    def __init__(self, module: nn.Module, mixin: type, begin: Callable[[Any], None]):
        self.module, self.inside = module, True
        self._class, bare = type(module), _unparametrized(module)
        values = vars(module)
        before = dict(values)
        hooks = {kind: dict(values[kind]) for kind in HOOKS}
        for name in _STATE:
            values[name] = type(values[name])()
        for name in before.keys() & _names(mixin):
            del values[name]
        for kind in HOOKS:
            for key, hook in hooks[kind].items():
                if makes_weight(hook):
                    del values[kind][key]
        module.__class__ = in_place_class(mixin, bare)
        begin(module)
        self._names = [name for name in before.keys() | values.keys()
                       if name not in before or before[name] is not values.get(name)]
        self._other = {name: before[name] for name in self._names if name in before}
        self._hooks = {kind: (hooks[kind], dict(values[kind])) for kind in HOOKS}

    def put_back(self) -> None:
        """Makes the module what it was; nothing where it is."""
        if self.inside:
            self._swap()

    def put_in(self) -> None:
        """Makes it again what it became; nothing where it is."""
        if not self.inside:
            self._swap()

    def _swap(self) -> None:
        values, module = vars(self.module), self.module
        now = {name: values[name] for name in self._names if name in values}
        for name in now:
            del values[name]
        values.update(self._other)
        module.__class__, self._class, self._other = self._class, type(module), now
        self.inside = not self.inside
        for kind, (float_hooks, own_hooks) in self._hooks.items():
            wanted, left = (own_hooks, float_hooks) if self.inside else (float_hooks, own_hooks)
            table = values[kind]
            others = {key: hook for key, hook in table.items() if key not in left}
            kept = {key: hook for key, hook in wanted.items() if key in table or key not in left}
            table.clear()
            table.update({**kept, **others})


def _names(mixin: type) -> set[str]:
    """What a mixin has or does under a name of its own; attributes of the module give way to it."""
    own = [kind for kind in mixin.__mro__ if not issubclass(nn.Module, kind)]
    return {'forward', *(name for kind in own for name in (*vars(kind), *get_annotations(kind))
                         if not hasattr(nn.Module, name))}


def _unparametrized(module: nn.Module) -> type:
    """The class of a module without what ``torch.nn.utils.parametrize`` has made of it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
