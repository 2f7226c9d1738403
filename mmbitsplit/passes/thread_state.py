"""What torch keeps for a thread and a forward may change while others run.

All batches of the quantized pass share one thread. A forward that sleeps inside ``enable_grad``,
``autocast``, ``inference_mode``, another default dtype or device must find that when it wakes, and
must not leave it to other batches, to the solver or to the caller.
"""

import functools
import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._device  # not an attribute of torch.utils until somebody imports it
from torch.utils import _python_dispatch

GENERATORS = ('torch', 'cuda', 'random', 'numpy')
AUTOCAST_DEVICES = ('cpu', 'cuda', 'xpu', 'mps')


def _settings() -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """By name two functions: one says what a setting is, the other sets it."""
    found = {
        'grad': (torch.is_grad_enabled, torch._C._set_grad_enabled),
        'forward_grad': (torch._C._is_fwd_grad_enabled, torch._C._set_fwd_grad_enabled),
        'default_dtype': (torch.get_default_dtype, torch.set_default_dtype),
        'autocast_cache': (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        'deterministic': (lambda: (torch.are_deterministic_algorithms_enabled(),
                                   torch.is_deterministic_algorithms_warn_only_enabled()),
                          lambda value: torch.use_deterministic_algorithms(
                              value[0], warn_only=value[1]))}
    for name in ('enabled', 'benchmark', 'deterministic'):
        found[f'cudnn_{name}'] = (functools.partial(getattr, torch.backends.cudnn, name),
                                  functools.partial(setattr, torch.backends.cudnn, name))
    for kind in ('flash', 'mem_efficient', 'math', 'cudnn'):  # of attention
        found[f'sdp_{kind}'] = (getattr(torch._C, f'_get_{kind}_sdp_enabled'),
                                getattr(torch._C, f'_set_sdp_use_{kind}'))
    for device in AUTOCAST_DEVICES:
        found[f'autocast_{device}'] = (functools.partial(torch.is_autocast_enabled, device),
                                       functools.partial(torch.set_autocast_enabled, device))
        found[f'autocast_dtype_{device}'] = (functools.partial(torch.get_autocast_dtype, device),
                                             functools.partial(torch.set_autocast_dtype, device))
    if torch.cuda.is_available():
        found['cuda_device'] = torch.cuda.current_device, torch.cuda.set_device
        found['cuda_stream'] = torch.cuda.current_stream, torch.cuda.set_stream
    return found


_SETTINGS = _settings()
_guard: list[Any] = []  # holds inference mode where it is now; ends when the next one is made


@dataclass(frozen=True)
class ThreadState:
    """Grad mode, inference mode, autocast, defaults, flags and modes, at one moment."""

    inference: bool
    settings: dict[str, Any]
    function_modes: tuple[Any, ...]
    dispatch_modes: tuple[Any, ...]
    default_device: tuple[Any, Any]

    @classmethod
    def now(cls) -> 'ThreadState':
        """Reads the state of this thread."""
        return cls(
            torch.is_inference_mode_enabled(),
            {name: get() for name, (get, _) in _SETTINGS.items()},
            tuple(torch.overrides._get_current_function_mode_stack()),
            tuple(_python_dispatch._get_current_dispatch_mode_stack()),
            (getattr(torch._GLOBAL_DEVICE_CONTEXT, 'device_context', None),
             torch.utils._device.CURRENT_DEVICE))

    def restore(self) -> None:
        """Makes it the state of this thread again."""
        now = ThreadState.now()
        if now == self:
            return
        # Modes first: changing inference mode writes back what the dispatcher was told of them.
        for _ in now.dispatch_modes:
            _python_dispatch._pop_mode()
        for _ in now.function_modes:
            torch.overrides._pop_mode()
        if now.inference != self.inference:
            _guard.clear()
            guard = torch._C._InferenceMode(self.inference)
            guard.__enter__()
            _guard.append(guard)
        for name, value in self.settings.items():
            get, put = _SETTINGS[name]
            if get() != value:  # looked up again: inference mode has changed some
                put(value)
        for mode in self.function_modes:
            torch.overrides._push_mode(mode)
        for mode in self.dispatch_modes:
            _python_dispatch._push_mode(mode)
        torch._GLOBAL_DEVICE_CONTEXT.device_context, torch.utils._device.CURRENT_DEVICE = \
            self.default_device

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, this state, whatever the forward that is running has set; then as before."""
        before = ThreadState.now()
        if before == self:
            yield
            return
        self.restore()
        try:
            yield
        finally:
            before.restore()


def random_state(kinds: Iterable[str] = GENERATORS) -> dict[str, Any]:
    """Returns the states of the generators that everybody shares."""
    found = {}
    for kind in kinds:
        if kind == 'torch':
            found[kind] = torch.get_rng_state()
        elif kind == 'cuda' and torch.cuda.is_available() and torch.cuda.is_initialized():
            found[kind] = torch.cuda.get_rng_state_all()
        elif kind == 'random':
            found[kind] = random.getstate()
        elif kind == 'numpy' and 'numpy' in sys.modules:
            found[kind] = sys.modules['numpy'].random.get_state()
    return found


def set_random_state(states: dict[str, Any]) -> None:
    """Puts back what ``random_state`` returned."""
    for kind, state in states.items():
        if kind == 'torch':
            torch.set_rng_state(state)
        elif kind == 'cuda':
            torch.cuda.set_rng_state_all(state)
        elif kind == 'random':
            random.setstate(state)
        else:
            sys.modules['numpy'].random.set_state(state)


def seed_generators(*key: Any) -> None:
    """Seeds all of them from what names a forward: both passes of a batch draw alike."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, 'little')
    torch.manual_seed(seed)
    random.seed(seed)
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed(seed)


def drawn_from(before: dict[str, Any]) -> set[str]:
    """Names the generators whose state is another than before."""
    return {kind for kind, state in random_state(before).items()
            if not _same(state, before[kind])}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if type(a).__module__ == 'numpy':
        return a.tobytes() == b.tobytes()
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return a == b


def in_a_state_of_its_own(calibrate: Callable) -> Callable:
    """Decorates what calls a model through ``run`` and computes beside it.

    Inside neither autocast, inference mode nor a default device of the caller hold, but where
    ``run`` runs the model they do. Afterwards, also after an error, the caller has its modes,
    defaults and generators of random numbers as they were.
    """
    @functools.wraps(calibrate)
    def wrapped(*args, run: Callable, **options) -> Any:
        with state_of_its_own() as caller:
            return calibrate(*args, run=as_called(run, caller), **options)
    return wrapped


@contextmanager
def state_of_its_own() -> Iterator[ThreadState]:
    """See ``in_a_state_of_its_own``; gives the caller's state, for ``as_called``."""
    caller, generators = ThreadState.now(), random_state()
    try:
        _plain(caller).restore()
        yield caller
    finally:
        caller.restore()
        set_random_state(generators)


def _plain(state: ThreadState) -> ThreadState:
    off = {f'autocast_{device}': False for device in AUTOCAST_DEVICES}
    return replace(state, inference=False, settings={**state.settings, **off}, function_modes=(),
                   default_device=(None, None))


def as_called(run: Callable, caller: ThreadState) -> Callable:
    """Runs in the caller's state, but without gradients and under the modes of the moment."""
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        now = ThreadState.now()
        state = replace(caller, settings={**caller.settings, 'grad': now.settings['grad']},
                        function_modes=(*caller.function_modes, *now.function_modes),
                        dispatch_modes=now.dispatch_modes)
        with state.apart():
            return run(*args, **kwargs)
    return wrapped
