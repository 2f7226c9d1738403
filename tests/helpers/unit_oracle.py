"""What a unit promises: a function of one tensor, and nothing but its output reaches the rest."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.structures import Unit


@dataclass
class Call:
    """One call of a module of a unit."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def x(self) -> Tensor:
        """The only tensor that the call was given."""
        (x,) = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]
        return x


def assert_alone(model: nn.Module, units: Sequence[Unit], calls: Sequence[Call],
                 reset: Callable[[], None] = lambda: None) -> None:
    """The modules of a unit, run alone on what it was given, give what it gave."""
    for unit in units:
        modules = [model.get_submodule(name) for name in unit.modules]
        for start, end in spans(unit, calls):
            reset()
            args, kwargs = copy.deepcopy((calls[start].args, calls[start].kwargs))
            with torch.no_grad():
                y = modules[0](*args, **kwargs)
                for module in modules[1:]:
                    y = module(y)
            assert isinstance(y, Tensor)
            torch.testing.assert_close(y, calls[end].output, rtol=1e-4, atol=1e-4)


def assert_isolated(model: nn.Module, units: Sequence[Unit], calls: Sequence[Call],
                    run: Callable[[], Any]) -> Any:
    """With noise inside units and what they gave put in place, all are given what they were.

    Returns:
        What the run returned.
    """
    large = [unit for unit in units if len(unit.layers) > 1]
    ends = {end: calls[end].output for unit in large for _, end in spans(unit, calls)}
    with ExitStack() as stack:
        for name in (name for unit in large for name in unit.layers):
            stack.enter_context(_noise(model.get_submodule(name)))
        again = stack.enter_context(following(model, units, ends))
        with torch.no_grad():
            result = run()
    assert [call.name for call in again] == [call.name for call in calls]
    for start in (start for unit in units for start, _ in spans(unit, calls)):
        assert torch.equal(again[start].x, calls[start].x), again[start].name
    return result


def spans(unit: Unit, calls: Sequence[Call]) -> Iterator[tuple[int, int]]:
    """Numbers of the first and the last call of a unit, each time it is called."""
    for start, call in enumerate(calls):
        if call.name == unit.modules[0]:
            end = start
            for name in unit.modules[1:]:
                end += 1
                assert calls[end].name == name
            yield start, end


@contextmanager
def following(model: nn.Module, units: Sequence[Unit], put: dict[int, Tensor] | None = None,
              ) -> Iterator[list[Call]]:
    """Lists calls of the modules of units.

    Args:
        model: The model.
        units: Of it.
        put: Written over outputs, by number of the call.
    """
    calls: list[Call] = []
    running: list[int] = []

    def enter(name: str):
        def hook(module, args, kwargs):
            running.append(len(calls))
            calls.append(Call(name, *copy.deepcopy((args, kwargs))))
        return hook

    def leave(module, args, output):
        number = running.pop()
        if put and number in put:
            output.copy_(put[number])
        calls[number].output = copy.deepcopy(output)

    hooks = []
    for name in dict.fromkeys(name for unit in units for name in unit.modules):
        module = model.get_submodule(name)
        hooks += [module.register_forward_pre_hook(enter(name), with_kwargs=True),
                  module.register_forward_hook(leave)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _noise(layer: nn.Module) -> Iterator[None]:
    hook = layer.register_forward_hook(lambda module, args, output: torch.randn_like(output))
    try:
        yield
    finally:
        hook.remove()
