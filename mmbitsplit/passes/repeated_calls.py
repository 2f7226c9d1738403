"""Layers called several times in one forward: a head that all pyramid levels share.

Such a layer can be solved only when the inputs of all its calls are known, and the later ones
come after outputs that need the solved layer. The smallest module call around all of them, its
owner, is therefore run several times on the same inputs: solved layers answer from memory,
layers not yet solved answer NaN at once, and what arrives without NaN is a layer's true input.
Each run thus knows the inputs of one more layer of every chain, at the cost of the cheap
operations between layers; no layer is computed twice. An output is forgotten, and answered by NaN
too, when the layers that read it have answers of their own; what was seen of the model says which
those are, and where that was not the whole truth, NaN shows it and the layer is computed again.

Some steps make numbers of NaN (``torch.where``, ``masked_fill``, ``nan_to_num``): what comes after
them is no true input. The runs of a first batch are therefore repeated with numbers in place of
NaN, once mostly positive, once mostly negative: a true input is the same in all of them. If one was
not, this is done for every batch. In the last run each layer must get what it was calibrated on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmbitsplit.functional import output_size
from mmbitsplit.models import DataFlow, QuantizedLayer
from mmbitsplit.passes.call_counts import Stack, Stacks
from mmbitsplit.passes.capture import CallCapture, Sampler, ordinary
from mmbitsplit.passes.forward_state import Bookmark
from mmbitsplit.passes.probes import Care, Digest, Filler, SpareMemory
from mmbitsplit.passes.thread_state import ThreadState

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


def find_owners(flow: DataFlow, planned: set[str], patterns: Sequence[Stacks] = (),
                ) -> dict[str, Owner]:
    """Finds the module calls that must be repeated.

    Args:
        flow: What was seen of the model.
        planned: Names of the layers that are quantized.
        patterns: Ways in which batches call layers, where they differ.

    Returns:
        By owner's module name (or ``RUN``). Owners of a batch do not overlap.
    """
    owners: dict[str, set[str]] = {}
    paths: set[tuple[str, ...]] = set()
    for stacks in patterns or [flow.stacks]:
        for call in _outermost(stacks, planned):
            paths.add(tuple(name for name, _ in call))
            inside = {name for name in planned
                      if any(stack[:len(call)] == call for stack in stacks.get(name, ()))}
            owners.setdefault(call[-1][0] if call else RUN, set()).update(inside)
    if len(patterns) > 1:  # what a batch repeats, another may call within something larger
        for path in paths:
            owners[path[-1] if path else RUN].update(
                name for stacks in patterns for name in planned for stack in stacks.get(name, ())
                if tuple(part for part, _ in stack[:len(path)]) == path)
    return {name: Owner(frozenset(inside), _readers(name, inside, flow))
            for name, inside in owners.items()}


def _outermost(stacks: Stacks, planned: set[str]) -> list[Stack]:
    """Module calls around all calls of a layer that is called more than once."""
    calls = set()
    for name in planned:
        own = stacks.get(name, [])
        if len(own) > 1:
            shared = 0
            while all(len(stack) > shared and stack[shared] == own[0][shared] for stack in own):
                shared += 1
            calls.add(own[0][:shared])
    return [call for call in calls
            if not any(other != call and call[:len(other)] == other for other in calls)]


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
        care: What is known of steps inside, from this batch and others.
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
    spare: SpareMemory
    care: Care
    memory: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)  # calls whose output was computed
    forgotten: set[str] = field(default_factory=set)
    forgets: bool = True
    offer: dict[str, dict[int, CallCapture]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    provisional: str | None = None
    final: bool = False
    # Of the inputs that a run took for true, and of all that runs before it did.
    digests: dict[tuple[str, int], Digest] = field(default_factory=dict)
    trusted: dict[tuple[str, int], Digest] = field(default_factory=dict)
    confirmed: set[tuple[str, int]] = field(default_factory=set)
    filler: Filler | None = None  # numbers in place of NaN
    mistaken: str | None = None  # a layer that got something else in the last run

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
            complete = {name: [calls[index] for index in sorted(calls)]
                        for name, calls in self.offer.items() if len(calls) == self.counts[name]}
            arrive(complete)
        return self._finish(forward, keep, args, kwargs)

    def _finish(self, forward: Callable, keep: '_InputKeeper', args: tuple, kwargs: dict) -> Any:
        """The last run, every layer answering from memory, or computing what was never asked."""
        self._checked(None)
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
            if not self.forgotten or not (self.mistaken or _has_nan(result)):
                return self._checked(result)
        self._remember_all()
        self.mistaken = None
        self._restart()
        return self._checked(forward(*again, **named))

    def _checked(self, result: Any) -> Any:
        if self.mistaken is not None:
            raise ValueError(
                f"Layer '{self.mistaken}', which is called {self.counts[self.mistaken]} times in a "
                'part of the model that is run again for each of its layers, was calibrated on '
                'other inputs than it gets in the end: a step before it decides by values that '
                'were not known yet, or draws from a generator of its own. Name that step as a '
                "replay point, or leave the layer in float with overrides=[dict(match="
                f"'{self.mistaken}', skip=True)].")
        return result

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
        self.trusted.update(self.digests)
        self._forget()

    def _attempts(self, forward: Callable, keep: '_InputKeeper') -> Exception | None:
        error = None
        for provisional in (None, self.pending()[0]):
            # The second attempt serves layers whose own output comes back to them: the layers
            # not yet solved answer as in float then.
            self.provisional = provisional
            self.offer.clear()
            self.digests.clear()
            error = self._once(forward, keep)
            if error is None:
                keep.check()
                self.bookmark.settle()
            if provisional is None and self.digests and self.care.wanted(self.batch):
                self._confirm(forward, keep)
            if self._has_inputs():
                break
        return error

    def _once(self, forward: Callable, keep: '_InputKeeper') -> Exception | None:
        self._restart()
        args, kwargs = keep.inputs()
        try:
            forward(*args, **kwargs)
        except Exception as raised:  # NaN upset a step that only the last run needs
            return raised
        return None

    def _confirm(self, forward: Callable, keep: '_InputKeeper') -> None:
        """Takes back what the last run took for true and is another with numbers for NaN."""
        for sign in (0, 1, -1):
            self.confirmed, self.filler = set(), Filler(sign)
            try:
                error = self._once(forward, keep)
            finally:
                self.filler = None
            if error is not None:  # numbers upset a step that NaN passes: they tell nothing
                continue
            for name, index in self.digests.keys() - self.confirmed:
                if sign == 0:  # the same run twice
                    self.mistaken = self.mistaken or name
                self.care.careful = True
                del self.digests[name, index]
                self.offer.get(name, {}).pop(index, None)
                if self.memory.pop((name, index), None) is not None and name in self.answered:
                    self.answered[name] -= 1
        if self.care.careful:
            self._remember_all()

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
        layer, key = self.layers[name], (name, index)
        if self.final:
            if key in self.trusted:
                total = float(x.sum())
                if not math.isnan(total):
                    self._compare(key, Digest.of(x, total))
            return self._unknown_output(layer, x) if name in self.forgotten \
                else self.memory.pop(key, None)
        if name in self.forgotten:
            return self._unknown_output(layer, x)
        if self.filler is not None and key in self.digests:
            if not self.digests[key].agrees(Digest.of(x)):
                return self._unknown_output(layer, x)
            self.confirmed.add(key)
        known = self.memory.get(key)
        if known is not None:
            return self._lend(known)
        total = float('nan') if self.filler is not None else float(x.sum())
        if math.isnan(total):
            return self._unknown_output(layer, x)
        if self.provisional is None:
            self.digests[key] = Digest.of(x, total)
            self._compare(key, self.digests[key])
        if layer.quantized and self.provisional is None:
            return None
        if not layer.quantized and self.provisional in (None, name):
            self.offer.setdefault(name, {})[index] = self.sampler.capture(
                name, layer, index, self.batch, ordinary(x, layer))
        return None if self.provisional is not None else self._unknown_output(layer, x)

    def _compare(self, key: tuple[str, int], digest: Digest) -> None:
        if key in self.trusted and not self.trusted[key].agrees(digest):
            self.mistaken = self.mistaken or key[0]

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
        output = self.spare.take(x, torch.Size(shape))
        return output.fill_(float('nan')) if self.filler is None else self.filler(output)


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
