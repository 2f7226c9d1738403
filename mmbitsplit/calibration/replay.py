"""Calls whose result is recorded in the float pass and handed out again in the quantized one.

Box decoding and proposal selection depend on the data; replaying their results keeps what
comes after them (RoI features) aligned row by row.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReplayPoint:
    """A method whose results are replayed: ``getattr(owner, method)``.

    Args:
        owner: The object whose method it is.
        method: Its name.
        instead: Called in its place in both passes, for a step that no layer comes after
            (pasting masks into images); nothing is recorded then.
    """

    owner: Any
    method: str
    instead: Callable | None = None


@dataclass
class Tape:
    """Results by batch, in the order of the calls."""

    results: dict[int, list[Any]] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)

    def record(self, batch: int, result: Any) -> Any:
        # A copy: what comes after may add to the result or change it in place.
        self.results.setdefault(batch, []).append(copy.deepcopy(result))
        return result

    def next(self, batch: int) -> Any:
        position = self.positions.get(batch, 0)
        recorded = self.results.get(batch, [])
        if position >= len(recorded):
            raise RuntimeError(f'Batch {batch}: the quantized pass asks for result '
                               f'{position + 1}, the float pass made {len(recorded)}.')
        self.positions[batch] = position + 1
        return copy.deepcopy(recorded[position])

    def bookmark(self, batch: int) -> Callable[[], None]:
        """Returns a function that takes the batch back to where it is now."""
        position = self.positions.get(batch, 0)
        return lambda: self.positions.update({batch: position})


@contextmanager
def patched(points: Sequence[ReplayPoint], wrap: Callable[[Callable], Callable]):
    """Wraps the methods for the duration of the context; instances only, classes untouched."""
    missing = object()
    before = [vars(point.owner).get(point.method, missing) for point in points]
    try:
        for point in points:
            setattr(point.owner, point.method,
                    point.instead or wrap(getattr(point.owner, point.method)))
        yield
    finally:
        for point, value in zip(points, before):
            if value is missing:
                vars(point.owner).pop(point.method, None)
            else:
                setattr(point.owner, point.method, value)


def recording(points: Sequence[ReplayPoint], tape: Tape, current: Callable[[], int],
              ) -> AbstractContextManager:
    """Records results of the batch that ``current`` names."""
    return patched(points, lambda method: lambda *args, **kwargs: tape.record(
        current(), method(*args, **kwargs)))


def replaying(points: Sequence[ReplayPoint], tape: Tape, current: Callable[[], int],
              ) -> AbstractContextManager:
    """Hands out recorded results instead of calling."""
    return patched(points, lambda method: lambda *args, **kwargs: tape.next(current()))


def barrier(points: Sequence[ReplayPoint]):
    """For ``models.watch``: operations inside these calls are not seen."""
    def make(blind: Callable[[], AbstractContextManager]) -> AbstractContextManager:
        def wrap(method):
            def wrapped(*args, **kwargs):
                with blind():
                    return method(*args, **kwargs)
            return wrapped
        return patched(points, wrap)
    return make
