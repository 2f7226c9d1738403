"""What a calibration is given: a model, its batches, and how the one is run on the other."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from mmbitsplit.models.opening import ClosedCall
from mmbitsplit.passes.batches import divided, mirrored
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.replay import ReplayPoint, Tape, recording, replaying
from mmbitsplit.passes.team import Team


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Runs a model on this process's calibration batches, which go by their number everywhere.

    Args:
        model: In eval mode.
        batches: This process's, by number over all processes.
        run_model: Runs the model on a batch, as ``run_model(model, batch)``.
        state: Keeps apart what forwards change, and knows whose forward is running.
        replay_points: Calls whose results are recorded in one pass and replayed in another.
        labels: What each batch is called in error messages, by number.
        team: Who has the other batches.
        total: Batches of all processes.
        closed_calls: Calls that multiply activations and that could not be opened.
    """

    model: nn.Module
    batches: Mapping[int, Any]
    run_model: Callable[[nn.Module, Any], Any]
    state: ForwardState
    replay_points: Sequence[ReplayPoint] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    team: Team = field(default_factory=Team)
    total: int = 0
    closed_calls: Sequence[ClosedCall] = ()

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], Any], *,
           seed: int, replay_points: Sequence[ReplayPoint] = (),
           labels: Sequence[str] | None = None, team: Team | None = None) -> 'Forwards':
        """Numbers this process's share of the batches.

        Args:
            model, replay_points, team: See the class.
            batches: In the order of ``team.batches``.
            run: Runs the model on a batch.
            seed: Of the calibration.
            labels: Of each batch.

        Raises:
            ValueError: No process has a batch.
        """
        team = team or Team()
        total = team.total(len(batches))
        check_not_empty(total)
        numbers = team.batches(total)
        assert len(numbers) == len(batches), (team.rank, len(batches), numbers)
        return cls(model=model, batches=dict(zip(numbers, batches)), run_model=run,
                   state=ForwardState(model, seed), replay_points=replay_points,
                   labels=dict(zip(numbers, labels or [f'batch {number}' for number in numbers])),
                   team=team, total=total)

    def with_mirrored(self, numbers: Container[int]) -> 'Forwards':
        """Adds batches seen in a mirror; each has the number of its own plus ``total``.

        Args:
            numbers: Of which batches, of all processes.
        """
        more = {number + self.total: mirrored(batch) for number, batch in self.batches.items()
                if number in numbers}
        labels = {number: f'{self.labels[number - self.total]}, mirrored' for number in more}
        return replace(self, batches={**self.batches, **more}, labels={**self.labels, **labels})

    def divided(self, images: int | None) -> tuple['Forwards', dict[int, list[int]]]:
        """Batches cut into parts, which have numbers of their own, in order of the batches.

        Args:
            images: About as many are in a part; ``None`` leaves batches whole.

        Returns:
            Who runs them, and by batch, of all processes, the numbers of its parts.
        """
        own = {number: divided(batch, images) for number, batch in self.batches.items()}
        counts = {number: count for found in self.team.gather(
            {number: len(cut) for number, cut in own.items()}) for number, count in found.items()}
        numbers, total = {}, 0
        for number in sorted(counts):
            numbers[number] = list(range(total, total + counts[number]))
            total += counts[number]
        pieces = {name: piece for number, cut in own.items()
                  for name, piece in zip(numbers[number], cut)}
        labels = {name: self.labels[number] for number in own for name in numbers[number]}
        return replace(self, batches=pieces, labels=labels, total=total), numbers

    def run(self, number: int) -> Any:
        """Runs the model on a batch, in the state that is set."""
        return self.run_model(self.model, self.batches[number])

    @contextmanager
    def whole(self, number: int) -> Iterator[None]:
        """Around a whole forward that nobody interrupts: what it changes is put back."""
        with torch.no_grad(), self.state.watched(number):
            yield

    def alone(self, number: int) -> Any:
        """Runs a whole forward that nobody interrupts."""
        with self.whole(number):
            return self.run(number)

    def recording(self, tape: Tape) -> AbstractContextManager:
        """Records results of replay points, each for the batch whose forward is running."""
        return recording(self.replay_points, tape, self.state.current_batch)

    def replaying(self, tape: Tape) -> AbstractContextManager:
        """Hands the recorded results of the running batch out instead of calling."""
        return replaying(self.replay_points, tape, self.state.current_batch)


def check_not_empty(count: int) -> None:
    """Raises ``ValueError`` for a calibration without batches."""
    if not count:
        raise ValueError('The calibration set is empty; at least one batch of images is needed.')
