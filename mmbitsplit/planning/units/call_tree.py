"""Module calls by name, over all runs that were watched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmbitsplit.models.watch.module_calls import OUTSIDE, ModuleCall, RunCalls


@dataclass(frozen=True)
class Place:
    """One call, in one of the runs."""

    run: int
    number: int


class CallTree:
    """Answers what is inside, beside and after module calls.

    Args:
        runs: At least one.
        planned: Names of the layers that are quantized, in execution order.
    """

    def __init__(self, runs: Sequence[RunCalls], planned: Sequence[str]):
        self._runs = runs
        self.planned = tuple(planned)
        self._order = {name: place for place, name in enumerate(planned)}
        self._places: dict[str, list[Place]] = {}
        self._children: dict[Place, list[Place]] = {}
        self._roots: list[Place] = []
        self._inside: dict[str, tuple[str, ...]] = {}
        for run, found in enumerate(runs):
            for number, call in enumerate(found.calls):
                place = Place(run, number)
                self._places.setdefault(call.name, []).append(place)
                if call.parent == OUTSIDE:
                    self._roots.append(place)
                else:
                    self._children.setdefault(Place(run, call.parent), []).append(place)

    def call(self, place: Place) -> ModuleCall:
        """What was seen of a call."""
        return self._runs[place.run].calls[place.number]

    def places(self, module: str) -> list[Place]:
        """All calls of a module."""
        return self._places.get(module, [])

    def modules(self) -> list[str]:
        """Modules with planned layers, in the order of their first calls, outer ones first."""
        return [name for name in self._places if self.layers(name)]

    def layers(self, module: str) -> tuple[str, ...]:
        """Planned layers called inside a module, or the layer itself, in execution order."""
        if module not in self._inside:
            found = {name for place in self.places(module) for name in self.layers_of(place)}
            self._inside[module] = tuple(sorted(found, key=self._order.__getitem__))
        return self._inside[module]

    def layers_of(self, place: Place) -> list[str]:
        """Planned layers that one call reaches, a name a call."""
        calls = self._runs[place.run].calls
        return [call.name for call in calls[place.number:calls[place.number].end + 1]
                if call.name in self._order]

    def holds(self, outer: Place, inner: Place) -> bool:
        """Whether a call lies in another, or is that call."""
        return outer.run == inner.run \
            and outer.number <= inner.number <= self.call(outer).end

    def within(self, place: Place | None) -> list[Place]:
        """Calls that one call makes itself, not through others; of ``None``, those around all."""
        return self._roots if place is None else self._children.get(place, [])

    def parts(self, module: str | None) -> list[str]:
        """Modules with planned layers that a module calls itself; of ``None``, those around all."""
        places = [None] if module is None else self.places(module)
        names = dict.fromkeys(self.call(child).name
                              for place in places for child in self.within(place))
        return [name for name in names if self.layers(name)]

    def counts(self, module: str) -> list[int]:
        """How often each run calls a module."""
        runs = [place.run for place in self.places(module)]
        return [runs.count(run) for run in range(len(self._runs))]

    def readers(self, place: Place, value: int) -> Iterator[Place | None]:
        """Calls that read a value which a call takes or gives; ``None`` is what is around all."""
        for number in self._runs[place.run].readers[value]:
            yield None if number == OUTSIDE else Place(place.run, number)

    def next(self, place: Place) -> Place | None:
        """The call that reads all of what a call gives, takes nothing else, and stands beside it.

        ``None`` where something else reads it too, or either is no function of one tensor.
        """
        call = self.call(place)
        if call.problem or call.parent == OUTSIDE:
            return None
        outside = [reader for reader in self.readers(place, call.gives)
                   if reader is None or not self.holds(place, reader)]
        for sibling in self.within(Place(place.run, call.parent)):
            if sibling.number > call.end and self.call(sibling).takes == call.gives:
                alone = not self.call(sibling).problem and all(
                    reader is not None and self.holds(sibling, reader) for reader in outside)
                return sibling if alone else None
        return None

    def next_part(self, place: Place) -> tuple[list[Place], Place | None]:
        """Calls without planned layers that come next, one after another, and the one with some.

        No planned layer is called between: what is open at a time is one unit.
        """
        between, following = [], self.next(place)
        while following is not None and not self.layers_of(following):
            between.append(following)
            following = self.next(following)
        if following is not None:
            calls = self._runs[place.run].calls[self.call(place).end + 1:following.number]
            if any(call.name in self._order for call in calls):
                following = None
        return between, following
