"""Everything that one forward may change and another must not see."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmbitsplit.passes.module_state import ModuleState
from mmbitsplit.passes.thread_state import (
    ThreadState,
    drawn_from,
    random_state,
    seed_generators,
    set_random_state,
)


@dataclass(frozen=True)
class Saved:
    """Where a forward stands.

    Args:
        batch: Number of its batch.
        thread: Modes, defaults and flags.
        generators: States of those that forwards draw from.
        modules: What forwards change on modules.
    """

    batch: int | None
    thread: ThreadState
    generators: dict[str, Any]
    modules: list[Any]


class ForwardState:
    """Keeps apart forwards that take turns in one thread.

    Made in the state in which calibration itself computes. Every forward begins in that state,
    with modules as they are now and generators seeded by its batch: both passes of a batch draw
    the same numbers, and what the batches before have left plays no part.

    Args:
        model: Its attributes and buffers belong to the forward that is running.
        seed: Of the calibration.

    Attributes:
        batch: Number of the batch whose forward is running, ``None`` between forwards.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.seed = seed
        with torch.no_grad():
            self.ours = ThreadState.now()
            self.modules = ModuleState(model)
        self.drawn: set[str] = set()  # generators that forwards draw from
        self.batch: int | None = None
        self._begun: dict[str, Any] = {}  # states of generators where the forward began

    def current_batch(self) -> int:
        """Number of the batch whose forward is running."""
        assert self.batch is not None, 'no forward is running'
        return self.batch

    def begin(self, batch: int) -> None:
        """The state at the beginning of a batch's forward."""
        self.batch = batch
        self.ours.restore()
        self.modules.reset()
        seed_generators(self.seed, 'forward', batch)

    @contextmanager
    def watched(self, batch: int) -> Iterator[None]:
        """Around a whole forward that nobody interrupts: sees what it changes, and puts it back.

        Afterwards the thread is as it was before, which need not be as calibration computes:
        who is outside may be recording gradients.
        """
        outside, thread = random_state(), ThreadState.now()
        self.begin(batch)
        self._begun = random_state()
        try:
            yield
            self.look()
        finally:
            self.pause()
            self.modules.end()
            set_random_state(outside)
            thread.restore()

    def look(self) -> None:
        """Sees what the forward has changed so far, which it may itself put back."""
        self.drawn |= drawn_from(self._begun)
        self.modules.look()

    def pause(self) -> None:
        """No forward is running: the state is that in which calibration itself computes."""
        self.ours.restore()
        self.batch = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around forwards of any kind: modules are as before afterwards."""
        try:
            yield
        finally:
            self.modules.end()

    def save(self) -> Saved:
        """Returns where the forward that is running stands."""
        thread = ThreadState.now()
        with self.ours.apart():
            return Saved(self.batch, thread, random_state(self.drawn), self.modules.save())

    def load(self, saved: Saved) -> None:
        """Goes on from there."""
        self.batch = saved.batch
        self.modules.load(saved.modules)
        set_random_state(saved.generators)
        saved.thread.restore()

    def bookmark(self) -> 'Bookmark':
        """Keeps where the forward that is running stands, to run a part of it again."""
        return Bookmark(self)


class Bookmark:
    """Where a forward stood."""

    def __init__(self, state: ForwardState):
        self.state, self.thread = state, ThreadState.now()
        with state.ours.apart():
            self.generators = random_state(state.drawn)
            self.modules = state.modules.bookmark()

    def rewind(self) -> None:
        """Goes back there."""
        with self.state.ours.apart():
            self.modules.rewind()
        set_random_state(self.generators)
        self.thread.restore()

    def settle(self) -> None:
        """A whole run is over: what it has left alone need not be kept."""
        self.modules.settle()
