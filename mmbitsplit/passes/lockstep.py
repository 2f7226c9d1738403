"""The quantized pass: all batches advance together, from one layer to the next.

Every batch runs in a greenlet of its own. Where it reaches a layer that is not solved yet it
hands over what calibration needs of the layer's input and sleeps. When all batches that will
reach a layer have done so, the layer is solved, and they wake with its quantized output. Each
image is run once, whatever the depth, and nothing of the model is known beforehand but which
layers it calls.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NoReturn

import torch
from torch import Tensor

from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.branches import Branch, current_branch
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.owner_runs import Offer, OwnerCall, OwnerRuns
from mmbitsplit.passes.probes import Care, SpareMemory
from mmbitsplit.passes.repeated_calls import RUN, Owner
from mmbitsplit.passes.replay import ReplayPoint, Tape, patched
from mmbitsplit.passes.unit_progress import UnitsInside

# What a process says of a layer: none of its batches reaches it (or it is solved), all that do
# have offered their inputs, some are still on their way.
_NOT_HERE, _READY, _WAITING = range(3)


class Lockstep:
    """Drives the quantized pass.

    Args:
        prepared: The model; its layers, and its products of activations, are solved one after
            another by ``solve``.
        forwards: Of the model.
        counts: By batch, calls of each of them in the float pass.
        owners: By module name, calls that are repeated for layers inside (``shared``).
        sampler: Positions.
        tape: Results that are replayed; taken back when an owner is run again.
        solve: Solves a layer or product and writes the solution into it; given the name and, by
            batch, what was captured of each call.
    """

    def __init__(self, prepared: PreparedModel, forwards: Forwards,
                 counts: Mapping[int, dict[str, int]], owners: dict[str, Owner], sampler: Sampler,
                 tape: Tape, solve: Callable[[str, dict[int, list[Any]]], None]):
        self.sites = prepared.sites
        self.prepared, self.forwards, self.counts = prepared, forwards, counts
        self.owners, self.sampler, self.solve, self.tape = owners, sampler, solve, tape
        self.team, self.state, self.spare = forwards.team, forwards.state, SpareMemory()
        self.workers: list[Worker] = []

    def run(self) -> None:
        """Runs all batches to the end; afterwards every reachable layer is solved."""
        self.workers = self._make_workers()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self.state.kept())
            stack.enter_context(self._replaying())
            self._intercept(stack)
            try:
                self._advance()
            finally:
                for branch in self._branches():
                    if not branch.dead:
                        branch.end()

    def _replaying(self) -> AbstractContextManager:
        return self.forwards.replaying(self.tape)

    def _make_worker(self, batch: int) -> 'Worker':
        return Worker(batch, self._work, self.state)

    def _make_workers(self) -> list['Worker']:
        return [self._make_worker(batch) for batch in self.forwards.batches]

    def _branches(self) -> list[Branch]:
        """All that may be asleep."""
        return [*self.workers]

    def _advance(self) -> None:
        for worker in self.workers:
            self._wake(worker)
        while self._left():
            self._step()

    def _left(self) -> int:
        """Batches of all processes that are on their way."""
        return self.team.total(sum(not worker.dead for worker in self.workers))

    def _wake(self, worker: 'Worker') -> None:
        worker.wake()

    def _step(self) -> None:
        """Solves every layer that all its batches offer, and wakes those that offered it."""
        sleeping = [worker for worker in self.workers if not worker.dead]
        states = self.team.gather(self._states(sleeping))
        ready = [name for name, seen in zip(self._stations(), zip(*states))
                 if _WAITING not in seen and _READY in seen]
        if not ready:
            self._stuck(sleeping)
        offers: dict[str, dict[Any, list[Any]]] = {}
        for name in ready:
            offering = [worker for worker in sleeping if name in worker.offer]
            offers[name] = {worker.key: worker.offer.pop(name) for worker in offering}
            for worker in offering:
                worker.due = True
        self._solve_all(offers)
        for worker in sleeping:
            if worker.due:
                self._wake(worker)

    def _stuck(self, sleeping: list['Worker']) -> NoReturn:
        waiting = sorted({name for part in self.team.gather(
            [name for worker in sleeping for name in worker.offer]) for name in part})
        raise RuntimeError(
            'The quantized pass does not follow the float pass: batches wait at '
            f'{", ".join(waiting) or "no layer"} and no layer has all of its batches. '
            'A step whose result depends on the data comes before; name it as a replay '
            'point.')

    def _stations(self) -> list[str]:
        """What batches wait at for each other: layers and products of activations."""
        return [*self.sites]

    def _passed(self, station: str) -> bool:
        """Whether nobody waits there any more."""
        return self.sites[station].quantized

    def _visits(self, station: str, batch: int) -> bool:
        """Whether a batch comes there."""
        return bool(self.counts[batch].get(station))

    def _solve_all(self, offers: dict[str, dict[int, list[Any]]]) -> None:
        """Solves what is ready; takes each station's offers out, so that they go when solved."""
        for name in list(offers):
            self.solve(name, offers.pop(name))

    def _states(self, sleeping: list['Worker']) -> list[int]:
        """Of each station, whether this process's batches that come there have done so."""
        states = []
        for name in self._stations():
            offered = sorted(worker.key for worker in sleeping if name in worker.offer)
            expected = sorted(worker.key for worker in self.workers
                              if self._visits(name, worker.batch))
            states.append(_NOT_HERE if self._passed(name) or not expected
                          else _READY if offered == expected else _WAITING)
        return states

    def _work(self, worker: 'Worker') -> None:
        run = self.forwards.run
        if RUN in self.owners:
            run = self._owner_forward(self.owners[RUN])(run)
        run(worker.batch)

    def _intercept(self, stack: ExitStack) -> None:
        """Puts the scheduler between the model and its layers and owners."""
        for name, layer in self.prepared.layers.items():
            stack.enter_context(patched([ReplayPoint(layer, 'forward')],
                                        self._layer_forward(name)))
        for name, product in self.prepared.products.items():
            stack.enter_context(patched([ReplayPoint(product, 'forward')],
                                        self._product_forward(name)))
        for name, owner in self.owners.items():
            if name != RUN:
                module = self.prepared.model.get_submodule(name)
                stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                            self._owner_forward(owner)))

    def _layer_forward(self, name: str) -> Callable:
        def wrap(forward: Callable) -> Callable:
            def intercepted(input: Tensor, *args, **kwargs) -> Tensor:
                worker = current_branch()
                if worker.owner_runs is not None:
                    return worker.owner_runs.call(name, (input,), forward)
                self._wait(worker, name, input)
                return forward(input, *args, **kwargs)
            return intercepted
        return wrap

    def _product_forward(self, name: str) -> Callable:
        def wrap(forward: Callable) -> Callable:
            def intercepted(a: Tensor, b: Tensor) -> Tensor:
                worker = current_branch()
                if worker.owner_runs is not None:
                    return worker.owner_runs.call(name, (a, b), forward)
                self._wait(worker, name, a, b)
                return forward(a, b)
            return intercepted
        return wrap

    def _wait(self, worker: 'Worker', name: str, *inputs: Tensor) -> None:
        """Hands over the inputs of a call of what is not solved, and sleeps until it is."""
        if not self._passed(name):
            with self.state.ours.apart():
                capture = self.sampler.capture(name, self.sites[name], 0, worker.batch, *inputs)
            worker.arrive({name: [capture]})

    def _units_inside(self, worker: 'Worker', owner: Owner) -> UnitsInside:
        """Units that an owner must solve; none where layers are solved one by one."""
        return UnitsInside()

    def _owner_forward(self, owner: Owner) -> Callable:
        layers = {name: site for name, site in self.sites.items() if name in owner.layers}
        care = Care()

        def wrap(forward: Callable) -> Callable:
            def intercepted(*args, **kwargs) -> Any:
                worker = current_branch()
                if worker.owner_runs is not None:  # the owner's class calls itself
                    return forward(*args, **kwargs)
                worker.owner_runs = OwnerRuns(OwnerCall(
                    layers=layers, passed=self._passed, readers=owner.readers,
                    counts=self.counts[worker.batch], sampler=self.sampler, batch=worker.batch,
                    rewind=self.tape.bookmark(worker.batch), ours=self.state.ours,
                    bookmark=self.state.bookmark(),
                    spare=self.spare, care=care, units=self._units_inside(worker, owner)))
                try:
                    return worker.owner_runs.run(forward, args, kwargs, worker.arrive)
                finally:
                    worker.owner_runs = None
            return intercepted
        return wrap


class Worker(Branch):
    """One batch on its way through the quantized model.

    Attributes:
        offer: What it has brought of the layers that it waits for.
        due: Whether one of them has been solved.
        owner_runs: Of the owner that it is inside of.
    """

    def __init__(self, batch: int, work: Callable[['Worker'], None], state: ForwardState):
        super().__init__(batch, work, state)
        self.offer: Offer = {}
        self.due = False
        self.owner_runs: OwnerRuns | None = None

    @property
    def key(self) -> Any:
        """What tells it from the others."""
        return self.batch

    def arrive(self, offer: Offer) -> None:
        """Offers inputs of layers and sleeps until the scheduler wakes this batch."""
        self.offer = offer
        self.sleep()

    def wake(self) -> None:
        self.due = False
        super().wake()
