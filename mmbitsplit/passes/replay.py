"""Calls whose result is recorded in the float pass and handed out again in the quantized one.

Box decoding and proposal selection depend on the data; replaying their results keeps what
comes after them (RoI features) aligned row by row.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmbitsplit.passes.selection_replay import (
    in_a_recorded_call,
    in_one_piece,
    replaying_selections,
)


@dataclass(frozen=True)
class ReplayPoint:
    """A method whose results are replayed: ``getattr(owner, method)``.

    Args:
        owner: The object (or module of Python) whose method (or function) it is.
        method: Its name.
        instead: Called in its place in both passes, for a step that no layer comes after
            (pasting masks into images); nothing is recorded then.
        indices_only: The method runs in both passes, its layers too, and only what it decides is
            replayed: indices (of a top-k, a sort, an argmax) and masks. The values picked are
            those of the pass that is running. For a method that holds layers, or whose result
            holds values that layers before it made.

    Raises:
        ValueError: ``instead`` and ``indices_only`` are both given.
    """

    owner: Any
    method: str
    instead: Callable | None = None
    indices_only: bool = False

    def __post_init__(self):
        if self.instead is not None and self.indices_only:
            raise ValueError(f"ReplayPoint(method='{self.method}'): 'instead' and 'indices_only' "
                             'exclude each other; a method that is not run decides nothing.')


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

    def behind(self, batch: int) -> bool:
        """Whether the next result has not been recorded yet."""
        return self.positions.get(batch, 0) >= len(self.results.get(batch, []))

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
    return _patched_by_kind(points, *_recorders(tape, current))


def replaying(points: Sequence[ReplayPoint], tape: Tape, current: Callable[[], int],
              ) -> AbstractContextManager:
    """Hands out recorded results instead of calling."""
    return _patched_by_kind(points, *_players(tape, current))


def recording_or_replaying(points: Sequence[ReplayPoint], tape: Tape, current: Callable[[], int],
                           records: Callable[[], bool], catch_up: Callable[[], None],
                           ) -> AbstractContextManager:
    """Records in float forwards and hands out in others, which take turns.

    Args:
        points, tape, current: As for ``recording``.
        records: Whether the forward that is running is a float one.
        catch_up: Called in others before a result is handed out; sleeps until it is there.
    """
    def either(record: Callable, play: Callable) -> Callable:
        def wrap(method: Callable) -> Callable:
            recorded, played = record(method), play(method)
            return lambda *args, **kwargs: (recorded if records() else played)(*args, **kwargs)
        return wrap
    return _patched_by_kind(points, *map(either, _recorders(tape, current),
                                         _players(tape, current, catch_up)))


def _recorders(tape: Tape, current: Callable[[], int]) -> tuple[Callable, Callable]:
    """What wraps methods to record whole results, and selections."""
    def whole(method: Callable) -> Callable:
        record = in_one_piece(lambda *args, **kwargs: tape.record(
            current(), method(*args, **kwargs)))
        # Inside a recorded call, which will not be made again, nothing is recorded for itself.
        return lambda *args, **kwargs: (method if in_a_recorded_call() else record)(
            *args, **kwargs)

    def selections(method: Callable) -> Callable:
        inside = replaying_selections(method, lambda found: tape.record(current(), found))
        return lambda *args, **kwargs: (method if in_a_recorded_call() else inside)(
            *args, **kwargs)
    return whole, selections


def _players(tape: Tape, current: Callable[[], int], catch_up: Callable[[], None] = lambda: None,
             ) -> tuple[Callable, Callable]:
    """What wraps methods to hand out whole results, and selections."""
    def play() -> Any:
        catch_up()
        return tape.next(current())
    return (lambda method: in_one_piece(lambda *args, **kwargs: play()),
            lambda method: replaying_selections(method, lambda found: play()))


def barrier(points: Sequence[ReplayPoint]):
    """For ``models.watch``: operations inside these calls are not seen.

    Where only indices are replayed, operations are seen and selections are not.
    """
    def make(blind: Callable[..., AbstractContextManager]) -> AbstractContextManager:
        def wrap_with(**options: bool) -> Callable:
            def wrap(method):
                def wrapped(*args, **kwargs):
                    with blind(**options):
                        return method(*args, **kwargs)
                return wrapped
            return wrap
        return _patched_by_kind(points, wrap_with(), wrap_with(only_selections=True))
    return make


@contextmanager
def _patched_by_kind(points: Sequence[ReplayPoint], whole: Callable, selections: Callable):
    with ExitStack() as stack:
        stack.enter_context(patched([p for p in points if not p.indices_only], whole))
        stack.enter_context(patched([p for p in points if p.indices_only], selections))
        yield
