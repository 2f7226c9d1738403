"""Opens a model's calls that multiply, by what the first batch shows; alike in every process."""

from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace

from mmbitsplit.models.opening import open_calls, reopen
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import barrier

FIRST = 0  # the batch that is looked at


def open_forwards(forwards: Forwards, closed: Container[str] = ()) -> Forwards:
    """Opens the model's calls that multiply; see ``models.opening``.

    An error leaves the model as it was.

    Args:
        forwards: Of the float model, which is changed in place.
        closed: Names of modules that are left alone.

    Returns:
        Forwards of the opened model, that know what stays closed.
    """
    model, team = forwards.model, forwards.team
    # Where only indices are replayed, what is called runs in every pass.
    hidden = sorted({point.method for point in forwards.replay_points if not point.indices_only})
    found = None
    if FIRST in forwards.batches:
        opened = open_calls(model, lambda: forwards.run(FIRST), inputs=forwards.batches[FIRST],
                            closed=closed, hidden=hidden, around=lambda: _whole(forwards))
        found = opened.describe(), opened.closed
    description, calls = next(filter(None, team.gather(found)))
    reopen(model, description)
    return replace(forwards, state=_state(forwards), closed_calls=calls)


def _state(forwards: Forwards) -> ForwardState:
    """Of the model as it is now: what opening has put on modules is no change by a forward."""
    return ForwardState(forwards.model, forwards.state.seed)


@contextmanager
def _whole(forwards: Forwards) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(replace(forwards, state=_state(forwards)).whole(FIRST))
        stack.enter_context(barrier(_instead(forwards))(_seen))
        yield


def _instead(forwards: Forwards) -> list:
    """Replay points that stand for steps which no pass runs."""
    return [point for point in forwards.replay_points if point.instead is not None]


def _seen(**options: bool) -> AbstractContextManager[None]:
    return nullcontext()
