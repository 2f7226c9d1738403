"""Tries opened modules: what each gives is compared with what it gave closed."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models.opening.opened_module import OpenedCallError, routed
from mmbitsplit.models.watch.carried import tensors_in

TOLERANCE = 1e-3  # relative, in float32
LOWER = 3e-2  # under autocast, and of models in lower precision


def try_openings(modules: Mapping[str, nn.Module], run: Callable[[], Any],
                 ) -> list[tuple[str, str, str]]:
    """Runs the model once; every call of an opened module is computed closed, too.

    Args:
        modules: Those that have just been opened, by name.
        run: Runs the model on a batch.

    Returns:
        Of each module that differs its name, the function called first in it and how it differs.
    """
    trial = _Trial()
    with torch.no_grad(), trial.of(modules):
        run()
    return [(name, next(row['function'] for row in modules[name]._openings.rows
                        if row['kind'] != 'pass'), reason)
            for name, reason in trial.wrong.items()]


class _Trial:

    def __init__(self):
        self.wrong: dict[str, str] = {}
        self.plain = False  # inside an open forward, where modules are tried already

    @contextmanager
    def of(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside, calls of these modules are tried."""
        for module in modules.values():
            module._openings.compare = self
        try:
            yield
        finally:
            for module in modules.values():
                module._openings.compare = None

    def __call__(self, module: nn.Module, forward: Callable, args: tuple,
                 kwargs: dict[str, Any]) -> Any:
        name = module._openings.name
        if name in self.wrong:
            return forward(*args, **kwargs)
        if self.plain:
            return routed(module, forward, args, kwargs)
        state, before = torch.get_rng_state(), _attributes(module)
        again, more = _copied(module, args, kwargs)
        expected = forward(*args, **kwargs)
        kept = [tensor.clone() for tensor in tensors_in(expected)]
        after, left = torch.get_rng_state(), _attributes(module)
        torch.set_rng_state(state)
        _put_back(before)
        self.plain = True
        try:
            reason = _difference(kept, tensors_in(routed(module, forward, again, more)))
        except Exception as error:
            reason = error.message if isinstance(error, OpenedCallError) else \
                f'opened, it ends with {type(error).__name__}: {error}'
        finally:
            self.plain = False
            torch.set_rng_state(after)
            _put_back(left)
        if reason:
            self.wrong[name] = reason
        return expected


def _copied(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Arguments that a forward may change (in place, or a cache among them) for another run."""
    # Modules and their parameters are not copied, wherever they are handed on.
    memo = {id(one): one for inner in module.modules()
            for one in (inner, *inner._parameters.values(), *inner._buffers.values())}
    try:
        return copy.deepcopy((args, kwargs), memo)
    except Exception:  # something that cannot be copied; it is seen to be changed, if it is
        return args, kwargs


_Attributes = list[tuple[nn.Module, dict[str, Any]]]


def _attributes(module: nn.Module) -> _Attributes:
    """What a module and those inside keep of their own, containers as they are now."""
    return [(inner, {name: copy.copy(value) if isinstance(value, (list, dict, set)) else value
                     for name, value in vars(inner).items() if not name.startswith('_')})
            for inner in module.modules()]


def _put_back(found: _Attributes) -> None:
    for module, attributes in found:
        for name in [name for name in vars(module) if not name.startswith('_')
                     and name not in attributes]:
            del vars(module)[name]
        vars(module).update({name: copy.copy(value) if isinstance(value, (list, dict, set))
                             else value for name, value in attributes.items()})


def _difference(expected: list[Tensor], found: list[Tensor]) -> str:
    """How outputs differ; empty where they are alike."""
    if [one.shape for one in expected] != [one.shape for one in found]:
        return 'opened, it gives outputs of another number or shape'
    for wanted, got in zip(expected, found):
        if wanted.dtype != got.dtype:
            return f'opened, it gives {got.dtype} in place of {wanted.dtype}'
        size = relative_difference(wanted, got)
        if size > (TOLERANCE if wanted.dtype in (torch.float32, torch.float64)
                   and not torch.is_autocast_enabled(wanted.device.type) else LOWER):
            return f'opened, its output differs by {100 * size:.2g} %'
    return ''


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Norm of the difference over that of what is expected; places that are not finite in what is
    expected do not count."""
    if not expected.numel() or expected.is_nested:
        return 0.0
    if not expected.is_floating_point():
        return 0.0  # decisions, which turn over by round-off
    a, b = expected.double(), found.double()
    finite = torch.isfinite(a)
    a, b = a[finite], b[finite]
    size = float((a - b).norm() / a.norm().clamp_min(1e-12))
    return size if size == size else float('inf')
