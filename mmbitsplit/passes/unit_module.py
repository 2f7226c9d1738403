"""The modules of a unit as one function of a tensor, and where its calls begin and end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.structures import Unit


class NoUnit(Exception):
    """A unit cannot be computed from its input alone; the message says why."""


@dataclass(frozen=True)
class Arguments:
    """How a module was called: everything but its tensor.

    Args:
        leaves: The other arguments.
        place: Where the tensor stands among them.
        spec: How they are put together.
    """

    leaves: tuple[Any, ...]
    place: int
    spec: TreeSpec

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> tuple['Arguments', Tensor]:
        """Takes arguments apart.

        Raises:
            NoUnit: There is not exactly one tensor, or it is not floating.
        """
        leaves, spec = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if len(places) != 1 or not leaves[places[0]].is_floating_point():
            raise NoUnit('takes something else than one floating tensor')
        place, = places
        return cls((*leaves[:place], *leaves[place + 1:]), place, spec), leaves[place]

    def filled(self, x: Tensor) -> tuple[tuple, dict]:
        """The arguments with a tensor."""
        leaves = [*self.leaves[:self.place], x, *self.leaves[self.place:]]
        return tree_unflatten(leaves, self.spec)


@dataclass
class UnitModule:
    """A unit's modules, called one after another.

    Args:
        unit: Their names.
        modules: As they stand in the prepared model.
        arguments: How each was called, by the shape of its tensor without the batch.
    """

    unit: Unit
    modules: tuple[nn.Module, ...]
    arguments: dict[tuple[int, tuple[int, ...]], Arguments] = field(default_factory=dict)

    @classmethod
    def of(cls, unit: Unit, model: nn.Module) -> 'UnitModule':
        """Finds the modules in a model."""
        return cls(unit, tuple(map(model.get_submodule, unit.modules)))

    def goes_on(self, call: 'OpenCall | None', index: int) -> bool:
        """Whether a module is called as the next of a call: one may be called elsewhere, too."""
        return call is None if index == 0 else call is not None and call.position == index - 1

    def note(self, index: int, args: tuple, kwargs: dict) -> None:
        """Remembers how a module is called.

        Raises:
            NoUnit: Not with one floating tensor.
        """
        arguments, x = Arguments.of(args, kwargs)
        self.arguments[index, tuple(x.shape[1:])] = arguments

    def __call__(self, x: Tensor, last: Callable[..., Any] | None = None) -> Tensor:
        """Computes the unit on an input, which is left as it is.

        Args:
            x: As the unit's calls get it, or crops of that.
            last: Called instead of the last module.

        Raises:
            NoUnit: It cannot be called on an input of this shape, or gives no tensor.
        """
        x = x.clone()
        for index, module in enumerate(self.modules):
            if not isinstance(x, Tensor):
                raise NoUnit('gives something else than a tensor')
            args, kwargs = self._arguments(index, x).filled(x)
            ends = index == len(self.modules) - 1 and last is not None
            x = (last if ends else module)(*args, **kwargs)
        return x

    def _arguments(self, index: int, x: Tensor) -> Arguments:
        exact = self.arguments.get((index, tuple(x.shape[1:])))
        if exact is not None:
            return exact
        known = [arguments for (module, _), arguments in self.arguments.items() if module == index]
        if not known or any(one.leaves != known[0].leaves for one in known):
            raise NoUnit('takes other arguments for inputs of other sizes')
        return known[0]


def input_of(args: tuple, kwargs: dict) -> Tensor | None:
    """The floating tensor that a call is given, ``None`` where it is not one alone."""
    try:
        return Arguments.of(args, kwargs)[1].detach()
    except NoUnit:
        return None


@dataclass
class OpenCall:
    """A call of a unit that has begun and not ended, in one branch.

    Args:
        x: A copy of its input, ``None`` where that is not one tensor.
        position: The module that was called last.
        rewind: Takes the forward's state back to where the call began.
    """

    x: Tensor | None
    position: int = 0
    rewind: Callable[[], None] = field(default=lambda: None)


def open_call(state: ForwardState, args: tuple, kwargs: dict, rewinds: bool) -> OpenCall:
    """Keeps the input of a call, and where the forward stands if it is to be run again."""
    rewind = state.bookmark().rewind if rewinds else lambda: None
    with state.ours.apart():
        x = input_of(args, kwargs)
        return OpenCall(None if x is None else x.clone(), rewind=rewind)


def same_outputs(one: Tensor, other: Tensor) -> bool:
    """Whether two ways to compute a unit's output agree, up to roundings."""
    if one.shape != other.shape:
        return False
    size = float(other.abs().max()) if other.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-4 * size))
