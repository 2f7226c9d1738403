"""How long learning the units that are left may take, by those that are learned."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.structures import Unit

OFTEN = 0.5  # seconds between two steps that are told
FIRST = 0.05  # part of the first unit before anything is said of the time that is left


@dataclass
class UnitTimes:
    """Tells steps of units, with the seconds that are left.

    Steps are taken to cost as a forward of their unit does. That is a guess: units seen in crops
    cost less.

    Args:
        units: Those to be learned, in order.
        costs: Work of a forward of each, by name.
        told: Gets the steps.
        learned: Names of those that are done.
        skipped: Names of those that could not be learned.
        seconds: That the learned ones took.
        clock: Seconds.
        last: When a step was told last.
        ended: Whether that was a unit's last.
    """

    units: Sequence[Unit]
    costs: Mapping[str, float]
    told: Callable[[Progress], None]
    learned: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    last: float = float('-inf')
    ended: bool = False

    def finish(self, unit: str, seconds: float, learned: bool) -> None:
        """A unit is done, or was none that could be learned."""
        (self.learned if learned else self.skipped).add(unit)
        self.seconds += seconds if learned else 0.0

    def due(self, step: int, steps: int) -> bool:
        """Whether a step is to be told: now and then, and the last."""
        now, ends = self.clock(), step >= steps
        if now - self.last < OFTEN and (not ends or self.ended):
            return False
        self.last, self.ended = now, ends
        return True

    def tell(self, unit: str, step: int, steps: int, seconds: float) -> None:
        """Tells a step.

        Args:
            unit: That is learned.
            step, steps: Done, and in all.
            seconds: That they took.
        """
        self.told(Progress('unit', step, steps, unit=unit, units_done=self.done,
                           units=len(self.units), seconds_left=self._left(
                               unit, step / max(1, steps), self.seconds + seconds)))

    @property
    def done(self) -> int:
        """Units that are done."""
        return len(self.learned | self.skipped)

    def _left(self, unit: str, part: float, seconds: float) -> float | None:
        if not self.learned and part < FIRST:
            return None
        own = self.costs[unit]
        behind = sum(self.costs[name] for name in self.learned) + part * own
        ahead = (1 - part) * own + sum(
            self.costs[one.name] for one in self.units
            if one.name not in self.learned | self.skipped and one.name != unit)
        return seconds / behind * ahead if behind else None
