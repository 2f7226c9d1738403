"""Everything that one forward may change and another must not see."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmbitsplit.calibration.thread_state import (
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
        thread: Modes, defaults and flags.
        generators: States of those that forwards draw from.
    """

    thread: ThreadState
    generators: dict[str, Any]


@dataclass
class ForwardState:
    """Keeps apart forwards that take turns in one thread.

    Made in the state in which calibration itself computes. Every forward begins in that state,
    with generators seeded by its batch: both passes of a batch draw the same numbers, and what
    the batches before have drawn plays no part.

    Args:
        seed: Of the calibration.
    """

    seed: int
    ours: ThreadState = field(default_factory=ThreadState.now)
    drawn: set[str] = field(default_factory=set)  # generators that forwards draw from

    def begin(self, batch: int) -> None:
        """The state at the beginning of a batch's forward."""
        self.ours.restore()
        seed_generators(self.seed, 'forward', batch)

    @contextmanager
    def watched(self, batch: int) -> Iterator[Callable[[], None]]:
        """Around a whole forward that nobody interrupts: sees what it changes, and puts it back.

        Gives a function that looks again: a forward may draw from a generator and put it back.
        """
        self.begin(batch)
        generators = random_state()

        def look() -> None:
            self.drawn |= drawn_from(generators)

        try:
            yield look
            look()
        finally:
            self.ours.restore()

    def save(self) -> Saved:
        """Returns where the forward that is running stands."""
        return Saved(ThreadState.now(), random_state(self.drawn))

    def load(self, saved: Saved) -> None:
        """Goes on from there."""
        saved.thread.restore()
        set_random_state(saved.generators)

    def bookmark(self) -> Callable[[], None]:
        """Returns a function that takes the forward back to where it is now."""
        saved = self.save()
        return lambda: self.load(saved)
