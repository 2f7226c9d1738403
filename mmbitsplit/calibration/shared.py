"""Layers called several times in one forward: a head that all pyramid levels share.

Such a layer can be solved only when the inputs of all its calls are known, and the later ones
come after outputs that need the solved layer. The smallest module call around all of them, its
owner, is therefore run several times on the same inputs: solved layers answer from memory,
layers not yet solved answer NaN at once, and what arrives without NaN is a layer's true input.
Each run thus knows the inputs of one more layer of every chain, at the cost of the cheap
operations between layers; no layer is computed twice. An output is forgotten, and answered by NaN
too, when the layers that read it have answers of their own; what was seen of the model says which
those are, and where that was not the whole truth, NaN shows it and the layer is computed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmbitsplit.calibration.capture import CallCapture, Sampler, ordinary
from mmbitsplit.calibration.forward_state import Bookmark
from mmbitsplit.calibration.thread_state import ThreadState
from mmbitsplit.functional import output_size
from mmbitsplit.models import DataFlow, QuantizedLayer

Offer = dict[str, list[CallCapture]]
RUN = '<run>'  # names as owner the run itself, when no module call is around all calls


@dataclass(frozen=True)
class Owner:
    """A module call that must be repeated.

    Args:
        layers: Names of the planned layers called inside it.
        readers: For each of them whose output only layers among them read: those layers.
    """

    layers: frozenset[str]
    readers: dict[str, frozenset[str]]


def find_owners(flow: DataFlow, planned: set[str]) -> dict[str, Owner]:
    """Finds the module calls that must be repeated.

    Args:
        flow: What was seen of the model.
        planned: Names of the layers that are quantized.

    Returns:
        By owner's module name (or ``RUN``). Owners do not overlap.
    """
    calls = set()
    for name in planned:
        stacks = flow.stacks[name]
        if len(stacks) > 1:
            shared = 0
            while all(len(stack) > shared and stack[shared] == stacks[0][shared]
                      for stack in stacks):
                shared += 1
            calls.add(stacks[0][:shared])
    outermost = [call for call in calls
                 if not any(other != call and call[:len(other)] == other for other in calls)]
    owners: dict[str, set[str]] = {}
    for call in outermost:
        inside = {name for name in planned
                  if any(stack[:len(call)] == call for stack in flow.stacks[name])}
        owners.setdefault(call[-1][0] if call else RUN, set()).update(inside)
    return {name: Owner(frozenset(inside), _readers(name, inside, flow))
            for name, inside in owners.items()}


def _readers(owner: str, inside: set[str], flow: DataFlow) -> dict[str, frozenset[str]]:
    # What the whole run returns was not seen, only what the model's call did.
    return {} if owner == RUN else {
        name: frozenset(flow.feeds[name]) for name in inside
        if flow.feeds.get(name) and flow.feeds[name] <= inside
        and name not in flow.deciding and name not in flow.returned.get(owner, inside)}


@dataclass(kw_only=True)
class OwnerRuns:
    """The repeated runs of one owner on one batch.

    Args:
        layers: Planned layers inside the owner.
        readers: See ``Owner``.
        counts: Calls of each layer in this batch's float forward.
        sampler: Positions.
        batch: Index of the batch.
        rewind: Takes recorded results back to where the owner was called.
        bookmark: Takes the forward's state back there.
        ours: The state of the thread in which calibration itself computes.
        spare: Memory for answers that only last for a run.
    """

    layers: dict[str, QuantizedLayer]
    readers: dict[str, frozenset[str]]
    counts: dict[str, int]
    sampler: Sampler
    batch: int
    rewind: Callable[[], None]
    bookmark: Bookmark
    ours: ThreadState
    spare: 'SpareMemory'
    memory: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)  # calls whose output was computed
    forgotten: set[str] = field(default_factory=set)
    forgets: bool = True
    offer: Offer = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    provisional: str | None = None
    final: bool = False

    def pending(self) -> list[str]:
        """Layers of this batch not solved yet, in plan order."""
        return [name for name, layer in self.layers.items()
                if self.counts.get(name) and not layer.quantized]

    def run(self, forward: Callable, args: tuple, kwargs: dict,
            arrive: Callable[[Offer], None]) -> Any:
        """Repeats ``forward`` until all layers inside are solved, then runs it for good.

        Args:
            forward: The owner's own forward.
            args, kwargs: Its inputs.
            arrive: Hands inputs of layers to the scheduler and sleeps until one is solved.
        """
        keep = _InputKeeper(args, kwargs, self.ours)
        while self.pending():
            self._probe(forward, keep)
            complete = {name: calls for name, calls in self.offer.items()
                        if len(calls) == self.counts[name]}
            arrive(complete)
        return self._finish(forward, keep, args, kwargs)

    def _finish(self, forward: Callable, keep: '_InputKeeper', args: tuple, kwargs: dict) -> Any:
        """The last run, every layer answering from memory, or computing what was never asked."""
        if keep.copies:  # it can be done only once
            self._remember_all()
        self.final = True
        again, named = keep.inputs()
        self._restart()
        try:
            result = forward(*args, **kwargs)
        except Exception:  # NaN may have upset a step
            if not self.forgotten:
                raise
        else:
            if not self.forgotten or not _has_nan(result):
                return result
        self._remember_all()
        self._restart()
        return forward(*again, **named)

    def _restart(self) -> None:
        self.calls.clear()
        self.spare.take_back()
        self.rewind()
        self.bookmark.rewind()

    def _probe(self, forward: Callable, keep: '_InputKeeper') -> None:
        error = self._attempts(forward, keep)
        if not self._has_inputs() and self.forgotten:
            self._remember_all()
            error = self._attempts(forward, keep)
        if not self._has_inputs():
            raise RuntimeError(
                f"Batch {self.batch}: the inputs of layer '{self.pending()[0]}', which is called "
                f'{self.counts[self.pending()[0]]} times, could not be found.') from error
        self._forget()

    def _attempts(self, forward: Callable, keep: '_InputKeeper') -> Exception | None:
        error = None
        for provisional in (None, self.pending()[0]):
            # The second attempt serves layers whose own output comes back to them: the layers
            # not yet solved answer as in float then.
            self.offer, self.provisional = {}, provisional
            self._restart()
            args, kwargs = keep.inputs()
            error = None
            try:
                forward(*args, **kwargs)
            except Exception as raised:  # NaN upset a step that only the last run needs
                error = raised
            else:
                keep.check()
                self.bookmark.settle()
            if self._has_inputs():
                break
        return error

    def _has_inputs(self) -> bool:
        """Whether the last run knew all inputs of a layer."""
        return any(len(calls) == self.counts[name] for name, calls in self.offer.items())

    def _forget(self) -> None:
        """Drops outputs whose readers all have outputs in memory."""
        done = {name for name, count in self.answered.items() if count == self.counts[name]}
        for name, readers in self.readers.items():
            if self.forgets and name in done and name not in self.forgotten and readers <= done:
                self.forgotten.add(name)
                for index in range(self.counts[name]):
                    self.memory.pop((name, index), None)

    def _remember_all(self) -> None:
        """Forgets no more: something reads outputs that was not seen."""
        self.forgotten.clear()
        self.forgets = False

    def call(self, name: str, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Answers one call of a planned layer during a run of the owner."""
        index = self.calls.get(name, 0)
        self.calls[name] = index + 1
        with self.ours.apart():
            answer = self._answer(name, index, x)
        if answer is not None:
            return answer
        output = forward(x)
        if self.final or self.provisional is not None:
            return output
        self.memory[name, index] = output
        if self.forgets:
            self.answered[name] = self.answered.get(name, 0) + 1
        with self.ours.apart():
            return self._lend(output)

    def _answer(self, name: str, index: int, x: Tensor) -> Tensor | None:
        """What a call is answered without computing it, or ``None``."""
        layer = self.layers[name]
        if name in self.forgotten:
            return self._unknown_output(layer, x)
        if self.final:
            return self.memory.pop((name, index), None)
        known = self.memory.get((name, index))
        if known is not None:
            return self._lend(known)
        unknown = bool(torch.isnan(x.sum()))
        if unknown:
            return self._unknown_output(layer, x)
        if layer.quantized and self.provisional is None:
            return None
        if not layer.quantized and self.provisional in (None, name):
            self.offer.setdefault(name, []).append(
                self.sampler.capture(name, layer, index, self.batch, ordinary(x, layer)))
        return None if self.provisional is not None else self._unknown_output(layer, x)

    def _lend(self, known: Tensor) -> Tensor:
        """A copy: the caller may change it in place."""
        return self.spare.take(known, known.shape).copy_(known)

    def _unknown_output(self, layer: QuantizedLayer, x: Tensor) -> Tensor:
        size = output_size(layer.geometry, x.shape)
        channels = layer.geometry.out_channels
        shape = (*size, channels) if layer.geometry.kind == 'linear' \
            else (size[0], channels, *size[1:])
        if self.final:
            return x.new_full(shape, float('nan'))
        return self.spare.take(x, torch.Size(shape)).fill_(float('nan'))


class SpareMemory:
    """Tensors that one run after another writes its passing answers to.

    Fresh memory for each of them would cost more than the answers: the system hands it out page
    by page.
    """

    def __init__(self):
        self.free: dict[tuple, list[Tensor]] = {}
        self.lent: list[Tensor] = []

    def take(self, like: Tensor, shape: torch.Size) -> Tensor:
        """Returns a contiguous tensor of a shape, of the dtype and device of ``like``."""
        free = self.free.get((shape, like.dtype, like.device))
        tensor = free.pop() if free else like.new_empty(shape)
        self.lent.append(tensor)
        return tensor.detach()  # whatever the borrower makes of its handle

    def take_back(self) -> None:
        """A run is over: what was lent may be lent again."""
        for tensor in self.lent:
            self.free.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(tensor)
        self.lent.clear()


def _has_nan(result: Any) -> bool:
    return any(bool(torch.isnan(leaf.sum())) for leaf in tree_flatten(result)[0]
               if isinstance(leaf, Tensor) and leaf.is_floating_point())


class _InputKeeper:
    """Gives each run the same inputs in containers of its own.

    Tensors are copied only where the owner changes them in place.
    """

    def __init__(self, args: tuple, kwargs: dict, ours: ThreadState):
        self.args, self.kwargs, self.ours = args, kwargs, ours
        self.copies = True
        self.given: list[Tensor] = []  # by the last run's containers, which it may have emptied

    def inputs(self) -> tuple[tuple, dict]:
        with self.ours.apart():  # copies made in inference mode would not count changes
            inputs = tree_map(
                lambda leaf: leaf.clone() if self.copies and isinstance(leaf, Tensor) else leaf,
                (self.args, self.kwargs))
        self.given = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
        return inputs

    def check(self) -> None:
        """After a whole run on copies: stop copying when none was changed."""
        if self.copies:
            self.copies = any(tensor._version > 0 for tensor in self.given)
