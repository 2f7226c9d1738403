"""Two branches a batch: the float forward runs beside the quantized one, a layer ahead.

Methods that look at a unit's inputs and outputs need the float input, the quantized input and the
float output of the same call at once. So there is no float pass before: each batch has a float
branch, asleep at a layer's entry as the quantized one is. It is woken where its targets or results
that are replayed are asked for, and runs to the next layer. Every image runs twice, as ever; what
forwards hold asleep is held twice.

Which layers each batch calls must be known beforehand. All are taken to call what the watched one
calls; where one does not, ``BatchesDiffer`` asks for a pass that counts, and each image runs three
times.
"""

from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn

from torch import Tensor

from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.passes.branches import Branch, current_branch
from mmbitsplit.passes.float_pass import FloatRecord, check_called_again, check_finite
from mmbitsplit.passes.lockstep import Lockstep, Worker
from mmbitsplit.passes.replay import ReplayPoint, patched, recording_or_replaying
from mmbitsplit.passes.thread_state import GENERATORS
from mmbitsplit.passes.unit_evidence import Collection, UnitEvidence
from mmbitsplit.passes.unit_module import NoUnit, OpenCall, UnitModule, input_of
from mmbitsplit.passes.unit_progress import STATION, UnitProgress, UnitsInside
from mmbitsplit.structures import Unit


class BatchesDiffer(Exception):
    """A batch calls other layers than was expected, or calls them more or less often."""


class FloatBranch(Branch):
    """A batch on its way through the float model.

    Attributes:
        trying: A part is run once more, for a try: layers answer and leave no trace.
        open: Calls of units that have begun and not ended.
    """

    def __init__(self, batch: int, work: Callable[['FloatBranch'], None], state: Any):
        super().__init__(batch, work, state)
        self.trying = False
        self.open: dict[str, OpenCall] = {}


class QuantizedBranch(Worker):
    """A batch on its way through the quantized model.

    Attributes:
        behind: It waits for a result that the float branch has not recorded yet.
        open: Calls of units that have begun and not ended.
    """

    def __init__(self, batch: int, work: Callable[[Any], None], state: Any):
        super().__init__(batch, work, state)
        self.behind = False
        self.open: dict[str, OpenCall] = {}


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """What a pass has to do with units.

    Args:
        units: Those whose layers are not all solved, in execution order.
        solve: Improves a unit whose layers are solved, from its evidence and by batch the
            quantized inputs of its calls; says whether it has changed codes.
        collection: What is kept of units.
    """

    units: Sequence[Unit]
    solve: Callable[[UnitEvidence, dict[int, list[Tensor]]], bool]
    collection: Collection


class TwinLockstep(Lockstep):
    """Drives both branches of all batches.

    Args:
        prepared, forwards, counts, owners, sampler, tape, solve: As for ``Lockstep``; the team is
            one process.
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
        self.progress = UnitProgress({unit.name: self._evidence(unit) for unit in work.units})

    def _evidence(self, unit: Unit) -> UnitEvidence:
        return UnitEvidence(
            UnitModule.of(unit, self.prepared.model),
            {name: self.prepared.layers[name].geometry for name in unit.layers},
            {batch: self.counts[batch].get(unit.layers[0], 0) for batch in self.forwards.batches},
            self.work.collection)

    def _replaying(self) -> AbstractContextManager:
        """Records results in float branches, hands them out in quantized ones."""
        return recording_or_replaying(
            self.forwards.replay_points, self.tape, self.state.current_batch,
            lambda: isinstance(current_branch(), FloatBranch), self._catch_up)

    # The scheduler.

    def _advance(self) -> None:
        self.floats = {batch: FloatBranch(batch, self._float_work, self.state)
                       for batch in self.forwards.batches}
        for branch in self.floats.values():
            self._wake_float(branch)
        super()._advance()
        self._run_floats_out()

    def _make_worker(self, batch: int) -> QuantizedBranch:
        return QuantizedBranch(batch, self._work, self.state)

    def _branches(self) -> list[Branch]:
        return [*super()._branches(), *self.floats.values()]

    def _wake(self, worker: QuantizedBranch) -> None:
        worker.wake()
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
        for branch in self.floats.values():
            while not branch.dead:
                self._wake_float(branch)
            found = self.record.counts.get(branch.batch, {})
            if found != {name: count for name, count in self.counts[branch.batch].items() if count}:
                raise BatchesDiffer

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

    def _solve(self, station: str, offers: dict[int, list[Any]]) -> None:
        for batch in offers:
            while not self._float_is_past(station, batch):
                self._wake_float(self.floats[batch])
        if not station.startswith(STATION):
            super()._solve(station, offers)
            return
        name = station.removeprefix(STATION)
        if self.work.solve(self.progress.evidence.pop(name), offers):
            self.progress.changed.add(name)
        self.progress.finished.add(name)

    def _float_is_past(self, station: str, batch: int) -> bool:
        if station.startswith(STATION):
            return self.progress.evidence[station.removeprefix(STATION)].complete(batch)
        calls = self.record.counts.get(batch, {}).get(station, 0)
        return calls >= self.counts[batch].get(station, 0)

    # What is put between the model and its parts.

    def _intercept(self, stack: ExitStack) -> None:
        super()._intercept(stack)
        for unit in self.units.values():
            for index, module in enumerate(self.progress.evidence[unit.name].function.modules):
                stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                            self._unit_forward(unit, index)))

    def _float_work(self, branch: FloatBranch) -> None:
        self.record.counts[branch.batch] = {}
        with self._one_thread.around():
            self.forwards.run(branch.batch)

    def _catch_up(self) -> None:
        worker = current_branch()
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
                if not branch.trying:
                    self._arrive_in_float(branch, name)
                output = layer.float_forward(input) if layer.quantized \
                    else forward(input, *args, **kwargs)
                if not branch.trying:
                    with self.state.ours.apart():
                        self._take(name, branch.batch, input, output)
                return output
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
        self._one_thread.check(name)
        check_called_again(name)
        calls = self.record.counts.get(branch.batch, {}).get(name, 0)
        if calls >= self.counts[branch.batch].get(name, 0):
            raise BatchesDiffer
        if name not in self._known or branch.batch == next(iter(self.floats)):
            self._known.add(name)
            with self.state.ours.apart():
                self.state.modules.learn()
        branch.sleep()

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
                if isinstance(branch, QuantizedBranch):
                    return self._quantized_call(branch, unit, index, forward, args, kwargs)
                if branch.trying:
                    return forward(*args, **kwargs)
                return self._float_call(branch, unit, index, forward, args, kwargs)
            return intercepted
        return wrap

    def _float_call(self, branch: FloatBranch, unit: Unit, index: int, forward: Callable,
                    args: tuple, kwargs: dict) -> Any:
        """A call of a unit's module in a float branch."""
        if not _goes_on(branch, unit, index):
            return forward(*args, **kwargs)
        evidence = self.progress.evidence[unit.name]
        if index == 0:
            branch.open[unit.name] = self._open(args, kwargs, rewinds=not evidence.decided)
        call = branch.open[unit.name]
        call.position = index
        try:
            evidence.function.note(index, args, kwargs)
        except NoUnit as error:
            evidence.problem = evidence.problem or str(error)
        output = forward(*args, **kwargs)
        if index == len(unit.modules) - 1:
            del branch.open[unit.name]
            with self.state.ours.apart():
                evidence.take_float(branch.batch, call.x, output,
                                    lambda x: self._tried(branch, call, evidence.function, x))
        return output

    def _open(self, args: tuple, kwargs: dict, rewinds: bool) -> OpenCall:
        """Keeps the input of a call, and where the forward stands if it is to be run again."""
        rewind = self.state.bookmark().rewind if rewinds else lambda: None
        with self.state.ours.apart():
            x = input_of(args, kwargs)
            return OpenCall(None if x is None else x.clone(), rewind=rewind)

    def _tried(self, branch: FloatBranch, call: OpenCall, function: UnitModule, x: Tensor,
               ) -> Tensor:
        """What the float unit makes of an input, called as it was; leaves no trace."""
        here = self.state.bookmark()
        branch.trying = True
        try:
            call.rewind()
            return function(x)
        finally:
            branch.trying = False
            here.rewind()

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
        if not _goes_on(branch, unit, index):
            return forward(*args, **kwargs)
        if index == 0:
            branch.open[unit.name] = self._open(args, kwargs, rewinds=True)
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


def _goes_on(branch: FloatBranch | QuantizedBranch, unit: Unit, index: int) -> bool:
    """Whether a module is called as the next of its unit: one may be called elsewhere, too."""
    call = branch.open.get(unit.name)
    return call is None if index == 0 else call is not None and call.position == index - 1
