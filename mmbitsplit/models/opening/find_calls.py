"""Finds, in a run of a model, the calls that multiply inside of modules' own forwards."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmbitsplit.models.layers.geometry import is_replaced
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.opening.calls import NAMES
from mmbitsplit.models.opening.classify import Classifier
from mmbitsplit.models.opening.dependence import Dependence
from mmbitsplit.models.opening.multiply import NoProduct, NotOpened
from mmbitsplit.models.opening.rows import Row
from mmbitsplit.models.watch.carried import tensors_in
from mmbitsplit.models.watch.closed_call import ClosedCall


@dataclass
class Found:
    """What a run showed.

    Args:
        sequences: By module, of each of its calls the rows of its calls that multiply.
        closed: Calls that no row stands for, in the order they were met.
        called: Names of the modules that were called.
    """

    sequences: dict[str, list[list[Row]]] = field(default_factory=dict)
    closed: list[ClosedCall] = field(default_factory=list)
    called: set[str] = field(default_factory=set)

    def close(self, module: str | None, function: str, reason: str) -> None:
        """Notes a call that stays as it is, once."""
        call = ClosedCall(module, function, reason)
        if call not in self.closed:
            self.closed.append(call)


def find_calls(model: nn.Module, run: Callable[[], Any], *, inputs: Any = None,
               hidden: Sequence[str] = ()) -> Found:
    """Runs a model once and lists the calls that multiply.

    Args:
        model: In eval mode; opened modules are looked at as any others.
        run: Runs it on one batch.
        inputs: The batch; its tensors are what activations depend on.
        hidden: Names of methods inside of which calls are not looked at: steps whose results are
            replayed.
    """
    finder = _Finder(model, tuple(hidden))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(finder.hooks())
        finder.dependence.take_in(tensors_in(inputs))
        stack.enter_context(finder.dependence)
        stack.enter_context(finder)
        run()
    return finder.found


class _Finder(TorchFunctionMode):

    def __init__(self, model: nn.Module, hidden: tuple[str, ...]):
        super().__init__()
        self.model, self.hidden, self.found = model, hidden, Found()
        self.names = {module: name for name, module in model.named_modules()}
        self.dependence = Dependence(model, self._product)
        self.classifier = Classifier(model, self.dependence)
        self.stack: list[tuple[nn.Module, list[Row]]] = []
        self.known = 0  # calls that run now are known

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in NAMES or self._is_done():
            return func(*args, **kwargs)
        self._note(NAMES[func], func, args, kwargs)
        self.known += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.known -= 1

    def _note(self, name: str, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        module, rows = self.stack[-1] if self.stack else (None, [])
        row: Row = {'function': name, 'kind': 'pass'}
        try:
            row = {'function': name, **self.classifier.row(module, func, args, kwargs)}
            self._check_forward(module, row)
        except NoProduct:
            pass
        except NotOpened as reason:
            row = {'function': name, 'kind': 'pass'}
            self.found.close(self.names.get(module), name, str(reason))
        if module is None and row['kind'] != 'pass':
            self.found.close(None, name, 'called outside of all modules')
        rows.append(row)

    def _check_forward(self, module: nn.Module | None, row: Row) -> None:
        """Refuses what a layer multiplies in its own code: ``layer.forward(x)``, not ``layer(x)``.

        Quantized, it would round its input there, and again where the call is sent to.
        """
        inner = row.get('layer', {}).get('inner')
        if inner and module is not None and _is_running(module.get_submodule(inner)):
            raise NotOpened(f"the weight of '{inner}' in its own forward, which is called itself: "
                            'layer.forward(x) in place of layer(x)')

    def _is_done(self) -> bool:
        """Whether what is called is what a layer or a product is for, or hidden."""
        if self.known or (self.stack and _multiplies_itself(self.stack[-1][0])):
            return True
        return self._is_hidden()

    def _is_hidden(self) -> bool:
        """Whether what runs is called by a hidden method."""
        frame = sys._getframe(1)
        while self.hidden and frame is not None:
            if frame.f_code.co_name in self.hidden:
                return True
            frame = frame.f_back
        return False

    def _product(self, operation: str) -> None:
        """An operation multiplies something; one that no known function has called is noted."""
        if not self._is_done():
            self.found.close(self.names.get(self.stack[-1][0]) if self.stack else None, operation,
                             'done by a function that is not known to multiply')

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside, it is known which module runs."""
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.stack:
            self.dependence.take_in(tensors_in((args, kwargs)))
        self.stack.append((module, []))
        self.found.called.add(self.names[module])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        _, rows = self.stack.pop()
        if not self._is_hidden():
            self.found.sequences.setdefault(self.names[module], []).append(rows)


def _is_running(module: nn.Module) -> bool:
    """Whether a method of a module is on its way."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is module:
            return True
        frame = frame.f_back
    return False


def _multiplies_itself(module: nn.Module) -> bool:
    return is_replaced(module) or isinstance(module, Product)
