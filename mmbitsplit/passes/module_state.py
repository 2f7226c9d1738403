"""What forwards change on modules: buffers, attributes, what containers hold, variables of hooks.

Features kept on ``self``, caches and counters belong to one forward. Batches that take turns must
not overwrite each other's, a run that is repeated must find what the first one found, and after
calibration all is as before. Nothing is copied on the way but what was seen to change.
"""

import functools
import logging
import types
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.models.layers.in_place_base import InPlaceModule
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.models.layers.streams import IN_USE
from mmbitsplit.models.surgery.modules import makes_weight

# Containers on a module, and in each other, that are looked into: ``self.caches[0].keys['k']``.
DEPTH = 3
MANY = 1000  # entries above which a container is compared by their number alone
_OF_TORCH = frozenset(vars(nn.Module())) - {'training'}
_NOT_CHANGED = _OF_TORCH | {IN_USE}
_OF_HOOKS = ('weight', 'bias')  # which hooks make in each call (weight norm)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial, type)


class _Place:
    """Something that holds values and can be given others; ``before``: a flat copy of them.

    Args:
        owner: Container, object, cell of a closure, tensor, or generator of random numbers.
    """

    def __init__(self, owner: Any):
        self.owner = owner
        self.before = self.contents()
        self.mark = self._mark()

    def differs(self) -> bool:
        """Whether the contents are others than before."""
        mark = self._mark()
        if mark == self.mark:
            return False
        if isinstance(mark, int) or not _alike(self.contents(), self.before):
            return True
        self.mark = mark  # of what is none of the contents something else is held
        return False

    def _mark(self) -> Any:
        """Quickly read, and another one whenever the contents are: ``before`` keeps the ids."""
        owner = self.owner
        if isinstance(owner, Tensor):
            return owner._version
        if isinstance(owner, torch.Generator):
            return owner.get_state().numpy().tobytes()
        if isinstance(owner, types.CellType):
            return [*map(id, self.contents().values())]
        values = dict.values(owner) if isinstance(owner, dict) else owner \
            if isinstance(owner, (list, set, deque)) else vars(owner).values()
        return len(values) if len(values) > MANY else [*map(id, values)]

    def contents(self) -> Any:
        owner = self.owner
        if isinstance(owner, Tensor):
            return owner.detach().clone()
        if isinstance(owner, torch.Generator):
            return owner.get_state()
        if isinstance(owner, dict):
            return dict(dict.items(owner))
        if isinstance(owner, (list, deque)):
            return [*owner]
        if isinstance(owner, set):
            return {*owner}
        if isinstance(owner, types.CellType):
            return {'': owner.cell_contents} if _filled(owner) else {}
        fixed = _fixed_names(owner)
        return {name: value for name, value in vars(owner).items()
                if name not in fixed and _may_change(owner, name, value)}

    def put(self, contents: Any) -> None:
        owner = self.owner
        if isinstance(owner, Tensor):
            with torch.no_grad():
                if owner.shape == contents.shape:
                    owner.copy_(contents)
                else:  # resized
                    owner.data = contents.clone()
        elif isinstance(owner, torch.Generator):
            owner.set_state(contents)
        elif isinstance(owner, dict):
            dict.clear(owner)
            dict.update(owner, contents)
        elif isinstance(owner, (list, deque)):
            owner.clear()
            owner.extend(contents)
        elif isinstance(owner, set):
            owner.clear()
            owner.update(contents)
        elif isinstance(owner, types.CellType):
            if contents:
                owner.cell_contents = contents['']
            elif _filled(owner):
                del owner.cell_contents
        else:
            for name in self.contents().keys() - contents.keys():
                del vars(owner)[name]
            vars(owner).update(contents)


class ModuleState:
    """Looks at all modules of a model, and at what their hooks refer to.

    Args:
        model: As it is to be found again.
    """

    def __init__(self, model: nn.Module):
        modules = list(model.modules())
        self.places = _places((*modules, *(module._buffers for module in modules)))
        known = {id(place.owner) for place in self.places}
        self.of_hooks = [place for place in _places(_hook_variables(modules))
                         if id(place.owner) not in known]
        self.changing: list[_Place] = []
        self.seen: set[_Place] = set()  # changed by the forward that is running

    def renew(self, modules: Iterable[nn.Module]) -> None:
        """Takes modules as they are now for what they are before forwards: calibration itself has
        changed their attributes or buffers."""
        owners = {id(owner) for module in modules for owner in (module, module._buffers)}
        for place in (*self.places, *self.changing):
            if id(place.owner) in owners:
                place.before, place.mark = place.contents(), place._mark()

    def look(self) -> None:
        """Notes what is not as it was, in the middle of a forward."""
        self.seen.update(place for place in (*self.places, *self.of_hooks) if place.differs())

    def end(self) -> None:
        """A forward is over, and all is given back that it has changed."""
        self.learn()
        self.reset()

    def learn(self) -> None:
        """Keeps apart from here on what the forward that is running has changed so far."""
        self.look()
        if self.seen:
            of_hooks = set(self.of_hooks)
            self.changing += [place for place in (*self.places, *self.of_hooks)
                              if place in self.seen and not _is_log(place, place in of_hooks)]
            self.places, self.of_hooks = ([place for place in places if place not in self.seen]
                                          for places in (self.places, self.of_hooks))
            self.seen.clear()

    def save(self) -> list[Any]:
        """Returns what is held where forwards change it."""
        return [place.contents() for place in self.changing]

    def load(self, saved: list[Any]) -> None:
        """Puts it there again; what was not known to change then is as before all forwards."""
        for place, contents in zip(self.changing, saved):
            place.put(contents)
        for place in self.changing[len(saved):]:
            place.put(place.before)

    def reset(self) -> None:
        """Gives back what forwards have changed."""
        self.load([place.before for place in self.changing])

    def bookmark(self) -> 'Bookmark':
        """Keeps what a forward has made so far, for running a part of it again."""
        return Bookmark(_places([place.owner for place in self.changing]))


class Bookmark:
    """Where a forward stood; also inside of what it has made itself."""

    def __init__(self, places: list[_Place]):
        self.places = places

    def rewind(self) -> None:
        """Back to there."""
        for place in self.places:
            if place.differs():
                place.put(place.before)
                place.mark = place._mark()

    def settle(self) -> None:
        """After a whole run: copies of tensors that it has left alone are not needed."""
        self.places = [place for place in self.places
                       if not isinstance(place.owner, Tensor) or place.differs()]


def _places(roots: Iterable[Any]) -> list[_Place]:
    """Everything reachable that may be changed in place, each once, outer ones first."""
    found: dict[int, _Place] = {}
    waiting = deque((root, 0) for root in roots)
    while waiting:
        value, level = waiting.popleft()
        if isinstance(value, tuple):
            inner = value
        elif id(value) not in found and _is_place(value, level):
            found[id(value)] = _Place(value)
            inner = found[id(value)].before
        else:
            continue
        if level < DEPTH and not isinstance(inner, Tensor) and len(inner) <= MANY:
            waiting.extend((item, level + 1) for item in (
                inner.values() if isinstance(inner, dict) else inner))
    return list(found.values())


def _is_place(value: Any, level: int) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and value.layout == torch.strided \
            and not value.is_inference() and not nn.parameter.is_lazy(value)
    if isinstance(value, nn.Module):
        return level == 0  # each is a root of its own
    if isinstance(value, (list, dict, set, deque, types.CellType, torch.Generator)):
        return True
    return hasattr(value, '__dict__') and not isinstance(
        value, (*_FUNCTIONS, types.ModuleType, logging.Logger)) \
        and not type(value).__module__.startswith('mmbitsplit.')


def _may_change(owner: Any, name: str, value: Any) -> bool:
    # Functions are left alone: methods that are replayed are set on their objects.
    if isinstance(value, _FUNCTIONS):
        return False
    return not (name in _OF_HOOKS and isinstance(owner, nn.Module) and any(
        map(makes_weight, owner._forward_pre_hooks.values())))


def _fixed_names(owner: Any) -> frozenset[str]:
    """Names of an object that are not looked at."""
    if isinstance(owner, InPlaceModule):
        return _names_in_place()
    return _NOT_CHANGED if isinstance(owner, nn.Module) else frozenset()


@functools.cache
def _names_in_place() -> frozenset[str]:
    geometry = layer_geometry(nn.Linear(1, 1))
    # Without 'training', which was looked at before the layer took its place.
    return frozenset((*_OF_HOOKS, IN_USE, *vars(Steps(())),
                      *vars(QuantizedLayer(geometry, torch.zeros(1, 1), None)))) - {'training'}


def _hook_variables(modules: Iterable[nn.Module]) -> Iterator[Any]:
    for module in modules:
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield from _variables(hook, DEPTH)


def _variables(function: Any, depth: int) -> Iterator[Any]:
    """What a function keeps: variables around it, globals it names, objects it is bound to."""
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
        function = function.func
    bound = getattr(function, '__self__', None)
    if bound is not None and not isinstance(bound, nn.Module):
        yield bound
    function = getattr(function, '__func__', function)
    if not isinstance(function, types.FunctionType):
        yield function
        return
    for cell in function.__closure__ or ():
        yield cell
        if depth and _filled(cell) and isinstance(cell.cell_contents, types.FunctionType):
            yield from _variables(cell.cell_contents, depth - 1)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, (list, dict, set, deque, Tensor)):
            yield value


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that has no value yet
        return False


def _is_log(place: _Place, of_hook: bool) -> bool:
    """Whether it is written down for the user: a list of a hook that has grown, its counts and
    texts, and a list on a module that has grown by anything but tensors."""
    if isinstance(place.owner, list) and len(place.owner) > len(place.before):
        return of_hook or not _holds_tensors(place)
    return of_hook and not _holds_tensors(place)


def _holds_tensors(place: _Place) -> bool:
    """Whether it holds tensors, or did before."""
    found = [place.before, place.contents()]
    for contents in found:
        found += [*contents.values()] if isinstance(contents, dict) else \
            [*contents] if isinstance(contents, (list, tuple, set)) else []
    return any(isinstance(value, Tensor) for value in found)


def _alike(a: Any, b: Any) -> bool:
    """Whether two flat copies hold the same objects."""
    if isinstance(a, Tensor):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(value is b[name] for name, value in a.items())
    if isinstance(a, set):
        return a == b
    return len(a) == len(b) and all(x is y for x, y in zip(a, b))
