"""The quantized pass: all batches advance together, from one layer to the next.

Every batch runs in a greenlet of its own. Where it reaches a layer that is not solved yet it
hands over what calibration needs of the layer's input and sleeps. When all batches that will
reach a layer have done so, the layer is solved, and they wake with its quantized output. Each
image is run once, whatever the depth, and nothing of the model is known beforehand but which
layers it calls.
"""

import contextvars
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.capture import CallCapture, Sampler, ordinary
from mmbitsplit.passes.forward_state import ForwardState, Saved
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.probes import Care, SpareMemory
from mmbitsplit.passes.repeated_calls import RUN, Offer, Owner, OwnerRuns
from mmbitsplit.passes.replay import ReplayPoint, Tape, patched

# What a process says of a layer: none of its batches reaches it (or it is solved), all that do
# have offered their inputs, some are still on their way.
_NOT_HERE, _READY, _WAITING = range(3)


class Lockstep:
    """Drives the quantized pass.

    Args:
        prepared: The model; its layers are solved one after another by ``solve``.
        forwards: Of the model.
        counts: By batch, calls of each layer in the float pass.
        owners: By module name, calls that are repeated for layers inside (``shared``).
        sampler: Positions.
        tape: Results that are replayed; taken back when an owner is run again.
        solve: Solves a layer and writes the solution into it; given the layer's name and, by
            batch, what was captured of each call.
    """

    def __init__(self, prepared: PreparedModel, forwards: Forwards,
                 counts: Mapping[int, dict[str, int]], owners: dict[str, Owner], sampler: Sampler,
                 tape: Tape, solve: Callable[[str, dict[int, list[CallCapture]]], None]):
        self.prepared, self.forwards, self.counts = prepared, forwards, counts
        self.owners, self.sampler, self.solve, self.tape = owners, sampler, solve, tape
        self.team, self.state, self.spare = forwards.team, forwards.state, SpareMemory()
        self.workers: list[_Worker] = []

    def run(self) -> None:
        """Runs all batches to the end; afterwards every reachable layer is solved."""
        self.workers = [_Worker(batch, self._work, self.state) for batch in self.forwards.batches]
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self.state.kept())
            stack.enter_context(self.forwards.replaying(self.tape))
            self._intercept(stack)
            try:
                for worker in self.workers:
                    worker.wake()
                while self.team.total(sum(not worker.dead for worker in self.workers)):
                    self._step()
            finally:
                for worker in self.workers:
                    if not worker.dead:
                        worker.end()

    def _step(self) -> None:
        """Solves every layer that all its batches offer, and wakes those that offered it."""
        sleeping = [worker for worker in self.workers if not worker.dead]
        states = self.team.gather(self._states(sleeping))
        ready = [name for name, seen in zip(self.prepared.layers, zip(*states))
                 if _WAITING not in seen and _READY in seen]
        if not ready:
            waiting = sorted({name for part in self.team.gather(
                [name for worker in sleeping for name in worker.offer]) for name in part})
            raise RuntimeError(
                'The quantized pass does not follow the float pass: batches wait at '
                f'{", ".join(waiting) or "no layer"} and no layer has all of its batches. '
                'A step whose result depends on the data comes before; name it as a replay '
                'point.')
        for name in ready:
            offering = [worker for worker in sleeping if name in worker.offer]
            self.solve(name, {worker.batch: worker.offer.pop(name) for worker in offering})
            for worker in offering:
                worker.due = True
        for worker in sleeping:
            if worker.due:
                worker.wake()

    def _states(self, sleeping: list['_Worker']) -> list[int]:
        """Of each layer, whether this process's batches that will reach it have done so."""
        states = []
        for name, layer in self.prepared.layers.items():
            offered = sorted(worker.batch for worker in sleeping if name in worker.offer)
            expected = [batch for batch in self.forwards.batches
                        if self.counts[batch].get(name)]
            states.append(_NOT_HERE if layer.quantized or not expected
                          else _READY if offered == expected else _WAITING)
        return states

    def _work(self, batch: int) -> None:
        run = self.forwards.run
        if RUN in self.owners:
            run = self._owner_forward(self.owners[RUN])(run)
        run(batch)

    def _current(self) -> '_Worker':
        return _greenlet().getcurrent()

    def _intercept(self, stack: ExitStack) -> None:
        """Puts the scheduler between the model and its layers and owners."""
        for name, layer in self.prepared.layers.items():
            stack.enter_context(patched([ReplayPoint(layer, 'forward')],
                                        self._layer_forward(name)))
        for name, owner in self.owners.items():
            if name != RUN:
                module = self.prepared.model.get_submodule(name)
                stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                            self._owner_forward(owner)))

    def _layer_forward(self, name: str) -> Callable:
        layer = self.prepared.layers[name]

        def wrap(forward: Callable) -> Callable:
            def intercepted(input: Tensor, *args, **kwargs) -> Tensor:
                worker = self._current()
                if worker.owner_runs is not None:
                    return worker.owner_runs.call(name, input, forward)
                if not layer.quantized:
                    with self.state.ours.apart():
                        capture = self.sampler.capture(name, layer, 0, worker.batch,
                                                       ordinary(input, layer))
                    worker.arrive({name: [capture]})
                return forward(input, *args, **kwargs)
            return intercepted
        return wrap

    def _owner_forward(self, owner: Owner) -> Callable:
        layers = {name: layer for name, layer in self.prepared.layers.items()
                  if name in owner.layers}
        care = Care()

        def wrap(forward: Callable) -> Callable:
            def intercepted(*args, **kwargs) -> Any:
                worker = self._current()
                if worker.owner_runs is not None:  # the owner's class calls itself
                    return forward(*args, **kwargs)
                worker.owner_runs = OwnerRuns(
                    layers=layers, readers=owner.readers, counts=self.counts[worker.batch],
                    sampler=self.sampler, batch=worker.batch,
                    rewind=self.tape.bookmark(worker.batch), ours=self.state.ours,
                    bookmark=self.state.bookmark(),
                    spare=self.spare, care=care)
                try:
                    return worker.owner_runs.run(forward, args, kwargs, worker.arrive)
                finally:
                    worker.owner_runs = None
            return intercepted
        return wrap


def _greenlet():
    """Imports greenlet when first needed, so that this room imports with torch alone."""
    try:
        import greenlet
    except ImportError as error:
        raise ImportError("Calibration needs the package 'greenlet': pip install greenlet.") \
            from error
    return greenlet


def _Worker(batch: int, work: Callable[[int], None], state: ForwardState):
    """Makes the greenlet of one batch; a function because its base class is imported late."""
    greenlet = _greenlet()

    class Worker(greenlet.greenlet):
        """One batch on its way through the quantized model."""

        def __init__(self):
            super().__init__(work)
            self.batch = batch
            self.offer: Offer = {}
            self.due = False
            self.owner_runs: OwnerRuns | None = None
            self.gr_context = contextvars.copy_context()
            self.saved: Saved | None = None  # before it has begun

        def arrive(self, offer: Offer) -> None:
            """Offers inputs of layers and sleeps until the scheduler wakes this batch."""
            self.offer = offer
            self.parent.switch()

        def wake(self) -> None:
            self.due = False
            self._enter(lambda: self.switch(batch))

        def end(self) -> None:
            """Leaves the forward where it sleeps; its context managers are left, too."""
            self._enter(lambda: self.throw(greenlet.GreenletExit))

        def _enter(self, switch: Callable[[], Any]) -> None:
            if self.saved is None:
                state.begin(batch)
            else:
                state.load(self.saved)
            try:
                switch()
            finally:
                self.saved = state.save()
                state.pause()

    return Worker()
