"""Forwards that sleep and wake in one thread, each with a state of its own."""

import contextvars
from collections.abc import Callable
from typing import Any

from mmbitsplit.passes.forward_state import ForwardState, Saved


class Branch:
    """One forward of one batch; it runs in a greenlet.

    Args:
        batch: Number of the batch.
        work: The forward; given this branch.
        state: Keeps apart what forwards change.
    """

    def __init__(self, batch: int, work: Callable[[Any], None], state: ForwardState):
        self.batch, self.state = batch, state
        self._greenlet = _greenlet().greenlet(lambda: work(self))
        self._greenlet.gr_context = contextvars.copy_context()
        self._greenlet.branch = self
        self._saved: Saved | None = None  # before it has begun

    @property
    def dead(self) -> bool:
        """Whether the forward is over."""
        return self._greenlet.dead

    def sleep(self) -> None:
        """Called inside the forward: goes on here when ``wake`` is called."""
        self._greenlet.parent.switch()

    def wake(self) -> None:
        """Runs the forward until it sleeps or is over."""
        self._enter(self._greenlet.switch)

    def end(self) -> None:
        """Leaves the forward where it sleeps; its context managers are left, too."""
        self._enter(lambda: self._greenlet.throw(_greenlet().GreenletExit))

    def _enter(self, switch: Callable[[], Any]) -> None:
        if self._saved is None:
            self.state.begin(self.batch)
        else:
            self.state.load(self._saved)
        try:
            switch()
        finally:
            self._saved = self.state.save()
            self.state.pause()


def current_branch() -> Any:
    """The branch whose forward is running; ``None`` outside of all."""
    return getattr(_greenlet().getcurrent(), 'branch', None)


def _greenlet():
    """Imports greenlet when first needed, so that this room imports with torch alone."""
    try:
        import greenlet
    except ImportError as error:
        raise ImportError("Calibration needs the package 'greenlet': pip install greenlet.") \
            from error
    return greenlet
