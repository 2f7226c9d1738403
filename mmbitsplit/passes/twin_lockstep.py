"""Two branches a batch: the float forward runs beside the quantized one, a layer ahead.

Methods that look at a unit's inputs and outputs need the float input, the quantized input and the
float output of the same call at once. So there is no float pass before: each batch has a float
branch, asleep at a layer's entry as the quantized one is. It is woken where its targets or results
that are replayed are asked for, and runs to the next layer. Every image runs twice, as ever; what
forwards hold asleep is held twice.

Which layers each batch calls must be known beforehand. All are taken to call what the watched one
calls; where one does not, ``BatchesDiffer`` asks for a pass that counts, and each image runs three
times. With several processes it is raised in all of them.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn

from torch import Tensor

from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.passes.branches import Branch, current_branch
from mmbitsplit.passes.float_pass import FloatRecord, check_called_again, check_finite
from mmbitsplit.passes.lockstep import Lockstep, Worker
from mmbitsplit.passes.replay import ReplayPoint, patched, recording_or_replaying
from mmbitsplit.passes.thread_state import GENERATORS
from mmbitsplit.passes.twin_branches import BatchesDiffer, FloatBranch, QuantizedBranch
from mmbitsplit.passes.unit_decisions import UnitDecisions
from mmbitsplit.passes.unit_evidence import Collection, UnitEvidence
from mmbitsplit.passes.unit_module import NoUnit, UnitModule, open_call
from mmbitsplit.passes.unit_progress import STATION, UnitProgress, UnitsInside
from mmbitsplit.structures import Unit


@dataclass(frozen=True)
class WaitingUnit:
    """A unit whose layers are solved, as this process knows it.

    Args:
        evidence: Of the float branches.
        inputs: By batch, what each call was given in the quantized branch.
    """

    evidence: UnitEvidence
    inputs: dict[int, list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """What a pass has to do with units.

    Args:
        units: Those whose layers are not all solved, in execution order.
        solve: Improves units whose layers are solved, all that wait at once, in the same order in
            all processes; says which have other codes now.
        collection: What is kept of units.
    """

    units: Sequence[Unit]
    solve: Callable[[Sequence[WaitingUnit]], set[str]]
    collection: Collection


class TwinLockstep(Lockstep):
    """Drives both branches of all batches.

    Args:
        prepared, forwards, owners, sampler, tape, solve: As for ``Lockstep``.
        counts: By batch, of all processes, calls of each layer.
        work: Units to solve, and how.
        record: Filled by the float branches.
        done: Layers solved already, whose targets nobody asks for.
    """

    def __init__(self, *args: Any, work: UnitWork, record: FloatRecord, done: Container[str]):
        super().__init__(*args)
        self.state.drawn = {*GENERATORS}  # no forward has shown which they draw from
        self.record, self.done, self.work = record, done, work
        self.floats: dict[int, FloatBranch] = {}
        self._one_thread, self._known = OneThread(), set()  # layers whose calls were looked at
        self.units = {unit.name: unit for unit in work.units}
        self.differ = False  # a batch of this process does
        self.progress = UnitProgress({unit.name: self._evidence(unit) for unit in work.units})

    def _evidence(self, unit: Unit) -> UnitEvidence:
        return UnitEvidence(
            UnitModule.of(unit, self.prepared.model),
            {name: self.prepared.layers[name].geometry for name in unit.layers},
            {batch: calls.get(unit.layers[0], 0) for batch, calls in self.counts.items()},
            self.work.collection)

    def _replaying(self) -> AbstractContextManager:
        """Records results in float branches, hands them out in quantized ones."""
        return recording_or_replaying(
            self.forwards.replay_points, self.tape, self.state.current_batch,
            lambda: isinstance(current_branch(), FloatBranch), self._catch_up)

    # The scheduler.

    def run(self) -> None:
        """See ``Lockstep``; how units are kept is decided before."""
        if UnitDecisions(self.prepared, self.forwards, self.progress.evidence).make():
            raise BatchesDiffer
        super().run()

    def _advance(self) -> None:
        self.floats = {batch: FloatBranch(batch, self._float_work, self.state)
                       for batch in self.forwards.batches}
        with self._until_batches_differ():
            for branch in self.floats.values():
                self._wake_float(branch)
        super()._advance()
        self._run_floats_out()

    @contextmanager
    def _until_batches_differ(self) -> Iterator[None]:
        """Around what this process does alone; ``_agree`` says so in all."""
        try:
            yield
        except BatchesDiffer:
            self.differ = True

    def _agree(self) -> None:
        """Raises ``BatchesDiffer`` in all processes where batches of one do."""
        if self.team.total(self.differ):
            raise BatchesDiffer

    def _left(self) -> int:
        self._agree()
        return super()._left()

    def _make_worker(self, batch: int) -> QuantizedBranch:
        return QuantizedBranch(batch, self._work, self.state)

    def _branches(self) -> list[Branch]:
        return [*super()._branches(), *self.floats.values()]

    def _wake(self, worker: QuantizedBranch) -> None:
        if self.differ:
            return
        worker.wake()
        with self._until_batches_differ():
            while worker.behind:
                worker.behind = False
                self._wake_float(self.floats[worker.batch])
                worker.wake()

    def _wake_float(self, branch: FloatBranch) -> None:
        """Runs a float branch to its next layer; the time counts as float."""
        if branch.dead:
            raise BatchesDiffer
        stopwatch, record = self.sampler.stopwatch, self.record
        started, sampled = perf_counter(), stopwatch.seconds['sampling']
        try:
            branch.wake()
        finally:
            sampled = stopwatch.seconds['sampling'] - sampled
            record.seconds_sampling += sampled
            record.seconds_forward += perf_counter() - started - sampled

    def _run_floats_out(self) -> None:
        """Runs float branches to their ends; what they call is known then."""
        with self._until_batches_differ():
            for branch in self.floats.values():
                while not branch.dead:
                    self._wake_float(branch)
                found, expected = self.record.counts, self.counts[branch.batch]
                if found.get(branch.batch, {}) != {name: expected[name] for name in expected
                                                   if expected[name]}:
                    raise BatchesDiffer
        self._agree()

    def _stuck(self, sleeping: list[Worker]) -> NoReturn:
        self._run_floats_out()
        super()._stuck(sleeping)

    def _stations(self) -> list[str]:
        return [*super()._stations(), *(STATION + name for name in self.units)]

    def _passed(self, station: str) -> bool:
        if station.startswith(STATION):
            return station.removeprefix(STATION) in self.progress.finished
        return super()._passed(station)

    def _visits(self, station: str, batch: int) -> bool:
        if station.startswith(STATION):
            station = self.units[station.removeprefix(STATION)].layers[0]
        return super()._visits(station, batch)

    def _solve_all(self, offers: dict[str, dict[int, list[Any]]]) -> None:
        """Layers one by one, then the units: others may learn them side by side."""
        units = {name.removeprefix(STATION): offers.pop(name) for name in list(offers)
                 if name.startswith(STATION)}
        for name in list(offers):
            if name in self.prepared.layers:  # products have no targets
                self._wake_floats(name, offers[name])
            super()._solve_all({name: offers.pop(name)})
        for name in units:
            self._wake_floats(STATION + name, units[name])
        waiting = [WaitingUnit(self.progress.evidence.pop(name), units.pop(name))
                   for name in list(units)]
        self.progress.finished |= {one.evidence.function.unit.name for one in waiting}
        self.progress.changed |= self.work.solve(waiting) if waiting else set()

    def _wake_floats(self, station: str, offers: dict[int, list[Any]]) -> None:
        """Runs the float branches of batches past a station where the others wait."""
        with self._until_batches_differ():
            for batch in offers:
                while not self._float_is_past(station, batch):
                    self._wake_float(self.floats[batch])
        self._agree()

    def _float_is_past(self, station: str, batch: int) -> bool:
        if station.startswith(STATION):
            return self.progress.evidence[station.removeprefix(STATION)].complete(batch)
        calls = self.record.counts.get(batch, {}).get(station, 0)
        return calls >= self.counts[batch].get(station, 0)

    # What is put between the model and its parts.

    def _intercept(self, stack: ExitStack) -> None:
        super()._intercept(stack)
        for table in self.prepared.embeddings.values():
            stack.enter_context(patched([ReplayPoint(table, 'forward')], _table_forward(table)))
        for unit in self.units.values():
            for index, module in enumerate(self.progress.evidence[unit.name].function.modules):
                stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                            self._unit_forward(unit, index)))

    def _float_work(self, branch: FloatBranch) -> None:
        self.record.counts[branch.batch] = {}
        with self._one_thread.around(), streams_through():
            self.forwards.run(branch.batch)

    def _catch_up(self) -> None:
        worker = current_branch()
        if worker is None:  # a run beside the branches, as far as they have come
            return
        while self.tape.behind(worker.batch) and not self.floats[worker.batch].dead:
            worker.behind = True
            worker.sleep()

    def _layer_forward(self, name: str) -> Callable:
        layer, quantized_wrap = self.prepared.layers[name], super()._layer_forward(name)

        def wrap(forward: Callable) -> Callable:
            quantized = quantized_wrap(forward)

            def intercepted(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                branch = current_branch()
                if branch is None:
                    return forward(input, *args, **kwargs)
                if not isinstance(branch, FloatBranch):
                    return quantized(input, *args, **kwargs)
                self._arrive_in_float(branch, name)
                output = layer.float_forward(input) if layer.quantized \
                    else forward(input, *args, **kwargs)
                with self.state.ours.apart():
                    self._take(name, branch.batch, input, output)
                return output
            return intercepted
        return wrap

    def _product_forward(self, name: str) -> Callable:
        quantized_wrap = super()._product_forward(name)

        def wrap(forward: Callable) -> Callable:
            quantized = quantized_wrap(forward)

            def intercepted(a: Tensor, b: Tensor) -> Tensor:
                branch = current_branch()
                if branch is not None and not isinstance(branch, FloatBranch):
                    return quantized(a, b)
                if branch is not None:
                    self._meet_in_float(branch, name)
                    self.record.count(name, branch.batch)
                return forward(a, b)  # the float product inside ``streams_through``
            return intercepted
        return wrap

    def _take(self, name: str, batch: int, x: Tensor, output: Tensor) -> None:
        """Keeps the target of a layer's call in a float branch."""
        with self.sampler.stopwatch('sampling'):
            check_finite(name, x, self.forwards.labels[batch], 'float')
        self.record.add_call(name, self.prepared.layers[name], batch, x, output,
                             None if name in self.done else self.sampler)

    def _arrive_in_float(self, branch: FloatBranch, name: str) -> None:
        """Sleeps at a layer's entry; sees what the forward has changed so far."""
        self._meet_in_float(branch, name)
        branch.sleep()

    def _meet_in_float(self, branch: FloatBranch, name: str) -> None:
        """Checks a call of a layer or product; sees what the forward has changed so far."""
        self._one_thread.check(name)
        check_called_again(name)
        calls = self.record.counts.get(branch.batch, {}).get(name, 0)
        if calls >= self.counts[branch.batch].get(name, 0):
            raise BatchesDiffer
        if name not in self._known or branch.batch == next(iter(self.floats)):
            self._known.add(name)
            with self.state.ours.apart():
                self.state.modules.learn()

    def _owner_forward(self, owner: Any) -> Callable:
        quantized_wrap = super()._owner_forward(owner)

        def wrap(forward: Callable) -> Callable:
            quantized = quantized_wrap(forward)

            def intercepted(*args: Any, **kwargs: Any) -> Any:
                runs_again = isinstance(current_branch(), QuantizedBranch)
                return (quantized if runs_again else forward)(*args, **kwargs)
            return intercepted
        return wrap

    def _units_inside(self, worker: QuantizedBranch, owner: Any) -> UnitsInside:
        return UnitsInside(tuple(
            unit for name, unit in self.units.items()
            if name not in self.progress.finished and name not in worker.open
            and owner.layers.issuperset(unit.layers)
            and self.counts[worker.batch].get(unit.layers[0])), self.progress)

    def _unit_forward(self, unit: Unit, index: int) -> Callable:
        def wrap(forward: Callable) -> Callable:
            def intercepted(*args: Any, **kwargs: Any) -> Any:
                branch = current_branch()
                if branch is None or unit.name in self.progress.finished:
                    return forward(*args, **kwargs)
                call = self._quantized_call if isinstance(branch, QuantizedBranch) \
                    else self._float_call
                return call(branch, unit, index, forward, args, kwargs)
            return intercepted
        return wrap

    def _float_call(self, branch: FloatBranch, unit: Unit, index: int, forward: Callable,
                    args: tuple, kwargs: dict) -> Any:
        """A call of a unit's module in a float branch."""
        evidence = self.progress.evidence[unit.name]
        if not evidence.function.goes_on(branch.open.get(unit.name), index):
            return forward(*args, **kwargs)
        if index == 0:
            branch.open[unit.name] = open_call(self.state, args, kwargs, rewinds=False)
        call = branch.open[unit.name]
        call.position = index
        try:
            evidence.function.note(index, args, kwargs)
        except NoUnit as error:
            evidence.refuse(branch.batch, str(error))
        output = forward(*args, **kwargs)
        if index == len(unit.modules) - 1:
            del branch.open[unit.name]
            with self.state.ours.apart():
                evidence.take_float(branch.batch, call.x, output)
        return output

    def _quantized_call(self, branch: QuantizedBranch, unit: Unit, index: int, forward: Callable,
                        args: tuple, kwargs: dict) -> Any:
        """A call of a unit's module in a quantized branch.

        After the last module it sleeps until the unit is solved, and is computed again with the
        codes that were taken.
        """
        function = self.progress.evidence[unit.name].function
        if branch.owner_runs is not None and unit.name not in branch.open:
            if index == 0:
                branch.owner_runs.enter_unit(unit.name, args, kwargs)
            return forward(*args, **kwargs)
        if not function.goes_on(branch.open.get(unit.name), index):
            return forward(*args, **kwargs)
        if index == 0:
            branch.open[unit.name] = open_call(self.state, args, kwargs, rewinds=True)
        call = branch.open[unit.name]
        call.position = index
        output = forward(*args, **kwargs)
        if index < len(unit.modules) - 1:
            return output
        branch.arrive({STATION + unit.name: [call.x]})
        del branch.open[unit.name]
        if unit.name not in self.progress.changed:
            return output
        call.rewind()
        return function(call.x, last=forward)


def _table_forward(table: Any) -> Callable:
    """Rows of the float table in float branches."""
    def wrap(forward: Callable) -> Callable:
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            if not isinstance(current_branch(), FloatBranch):
                return forward(*args, **kwargs)
            with table.in_float():
                return forward(*args, **kwargs)
        return intercepted
    return wrap
