"""Runs an owner again and again, until the inputs of all calls inside are known.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmbitsplit.functional import output_size
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.product import Product, product_shape
from mmbitsplit.passes.capture import CallCapture, Sampler
from mmbitsplit.passes.forward_state import Bookmark
from mmbitsplit.passes.known_outputs import Call, KnownOutputs
from mmbitsplit.passes.probes import Care, Digest, Filler, SpareMemory
from mmbitsplit.passes.product_capture import ProductCapture
from mmbitsplit.passes.thread_state import ThreadState
from mmbitsplit.passes.true_inputs import TrueInputs
from mmbitsplit.passes.unit_progress import STATION, UnitsInside

Offer = dict[str, list[Any]]  # by layer what was captured of its calls; by unit their inputs


@dataclass(frozen=True, kw_only=True)
class OwnerCall:
    """One batch's call of an owner.

    Args:
        layers: Planned layers inside the owner, and products of activations.
        passed: Whether nobody waits at a layer any more: it is solved.
        readers: See ``repeated_calls.Owner``.
        counts: Calls of each layer in this batch's float forward.
        sampler: Positions.
        batch: Index of the batch.
        rewind: Takes recorded results back to where the owner was called.
        bookmark: Takes the forward's state back there.
        care: What is known of steps inside, from this batch and others.
        ours: The state of the thread in which calibration itself computes.
        spare: Memory for answers that only last for a run.
        units: Units inside that are to be solved, too.
    """

    layers: dict[str, QuantizedLayer | Product]
    passed: Callable[[str], bool]
    readers: dict[str, frozenset[str]]
    counts: dict[str, int]
    sampler: Sampler
    batch: int
    rewind: Callable[[], None]
    bookmark: Bookmark
    ours: ThreadState
    spare: SpareMemory
    care: Care
    units: UnitsInside = field(default_factory=UnitsInside)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of the owner.

    Args:
        provisional: For layers whose own output comes back to them: the layer whose inputs are
            asked for while those not yet solved answer as in float.
        filler: Writes numbers in place of NaN, where what is true is to be confirmed.
        final: The last one, whose result is the owner's.
        calls: By layer or unit, how often it was called so far.
    """

    provisional: str | None = None
    filler: Filler | None = None
    final: bool = False
    calls: dict[str, int] = field(default_factory=dict)

    def next(self, name: str) -> int:
        """Which of its calls comes now."""
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.calls[name] - 1


class OwnerRuns:
    """The repeated runs of one owner on one batch.

    Args:
        call: What is repeated.

    Attributes:
        outputs: What calls inside have given.
        inputs: Which of their inputs are true.
        found: By layer and call, what was captured in the last run that asked for it.
        now: The run that is going on.
    """

    def __init__(self, call: OwnerCall):
        self.call_again = call
        self.outputs = KnownOutputs(call.readers, call.counts)
        self.inputs = TrueInputs()
        self.found: dict[str, dict[int, CallCapture | ProductCapture]] = {}
        self.now = _Run()

    def pending(self) -> list[str]:
        """Layers of this batch not solved yet, in plan order."""
        owner = self.call_again
        return [name for name in owner.layers
                if owner.counts.get(name) and not owner.passed(name)]

    def run(self, forward: Callable, args: tuple, kwargs: dict,
            arrive: Callable[[Offer], None]) -> Any:
        """Repeats ``forward`` until all layers inside are solved, then runs it for good.

        Args:
            forward: The owner's own forward.
            args, kwargs: Its inputs.
            arrive: Hands inputs of layers to the scheduler and sleeps until one is solved.
        """
        owner = self.call_again
        keep = _InputKeeper(args, kwargs, owner.ours)
        while self.pending():
            self.outputs.unsettled = owner.units.layers()
            self._probe(forward, keep)
            complete = {name: [calls[index] for index in sorted(calls)]
                        for name, calls in self.found.items() if len(calls) == owner.counts[name]}
            if self.now.provisional is None:
                owner.units.freeze(set(complete))
            arrive(complete)
            renewed = owner.units.solve(owner.passed, arrive)
            self.outputs.renew(renewed)
            self.inputs.renew(renewed)
        return self._finish(forward, keep, args, kwargs)

    def _finish(self, forward: Callable, keep: '_InputKeeper', args: tuple, kwargs: dict) -> Any:
        """The last run, every layer answering from memory, or computing what was never asked."""
        self._checked(None)
        if keep.copies:  # it can be done only once
            self.outputs.remember_all()
        again, named = keep.inputs()
        self._restart(_Run(final=True))
        forgotten = self.outputs.forgotten
        try:
            result = forward(*args, **kwargs)
        except Exception:  # NaN may have upset a step
            if not forgotten:
                raise
        else:
            if not forgotten or not (self.inputs.mistaken or _has_nan(result)):
                return self._checked(result)
        self.outputs.remember_all()
        self.inputs.mistaken = None
        self._restart(_Run(final=True))
        return self._checked(forward(*again, **named))

    def _checked(self, result: Any) -> Any:
        layer = self.inputs.mistaken
        if layer is not None:
            raise ValueError(
                f"Layer '{layer}', which is called {self.call_again.counts[layer]} times in a "
                'part of the model that is run again for each of its layers, was calibrated on '
                'other inputs than it gets in the end: a step before it decides by values that '
                'were not known yet, or draws from a generator of its own. Name that step as a '
                "replay point, or leave the layer in float with overrides=[dict(match="
                f"'{layer}', skip=True)].")
        return result

    def _restart(self, run: _Run) -> None:
        owner, self.now = self.call_again, run
        owner.spare.take_back()
        owner.rewind()
        owner.bookmark.rewind()

    def _probe(self, forward: Callable, keep: '_InputKeeper') -> None:
        """Finds all inputs of a layer at least."""
        error = self._attempts(forward, keep)
        if not self._has_inputs() and self.outputs.forgotten:
            self.outputs.remember_all()
            error = self._attempts(forward, keep)
        if not self._has_inputs():
            name, owner = self.pending()[0], self.call_again
            raise RuntimeError(
                f"Batch {owner.batch}: the inputs of layer '{name}', which is called "
                f'{owner.counts[name]} times, could not be found.') from error
        self.inputs.trust()
        self.outputs.forget()

    def _attempts(self, forward: Callable, keep: '_InputKeeper') -> Exception | None:
        error, owner = None, self.call_again
        for provisional in (None, self.pending()[0]):
            # The second attempt serves layers whose own output comes back to them: the layers
            # not yet solved answer as in float then.
            run = _Run(provisional=provisional)
            self.found.clear()
            self.inputs.seen.clear()
            owner.units.noted.clear()
            error = self._once(forward, keep, run)
            if error is None:
                keep.check()
                owner.bookmark.settle()
            if provisional is None and self.inputs.seen and owner.care.wanted(owner.batch):
                self._confirm(forward, keep)
            self.now = run
            if self._has_inputs():
                break
        return error

    def _once(self, forward: Callable, keep: '_InputKeeper', run: _Run) -> Exception | None:
        self._restart(run)
        args, kwargs = keep.inputs()
        try:
            forward(*args, **kwargs)
        except Exception as raised:  # NaN upset a step that only the last run needs
            return raised
        return None

    def _confirm(self, forward: Callable, keep: '_InputKeeper') -> None:
        """Takes back what the last run took for true and is another with numbers for NaN."""
        care = self.call_again.care
        for sign in (0, 1, -1):
            self.inputs.begin_confirming()
            error = self._once(forward, keep, _Run(filler=Filler(sign)))
            if error is not None:  # numbers upset a step that NaN passes: they tell nothing
                continue
            for name, index in self.inputs.reject_others(same_run=sign == 0):
                care.careful = True
                self.found.get(name, {}).pop(index, None)
                self.outputs.drop((name, index))
        if care.careful:
            self.outputs.remember_all()

    def _has_inputs(self) -> bool:
        """Whether the last run knew all inputs of a layer."""
        return any(len(calls) == self.call_again.counts[name]
                   for name, calls in self.found.items())

    def enter_unit(self, name: str, args: tuple, kwargs: dict) -> None:
        """Notes what a unit is given, in runs that ask for inputs."""
        index, run = self.now.next(STATION + name), self.now
        if run.filler is None and run.provisional is None and not run.final:
            with self.call_again.ours.apart():
                self.call_again.units.note(name, index, args, kwargs)

    def call(self, name: str, inputs: tuple[Tensor, ...], forward: Callable[..., Tensor]) -> Tensor:
        """Answers one call of a planned layer, or of a product, during a run of the owner."""
        if name not in self.call_again.layers:  # a product that nobody waits at
            return forward(*inputs)
        run, call = self.now, (name, self.now.next(name))
        with self.call_again.ours.apart():
            answer = self._answer(call, inputs)
        if answer is not None:
            return answer
        output = forward(*inputs)
        if run.final or run.provisional is not None:
            return output
        self.outputs.keep(call, output)
        with self.call_again.ours.apart():
            return self._lend(output)

    def _answer(self, call: Call, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """What a call is answered without computing it, or ``None``."""
        run, name = self.now, call[0]
        if run.final:
            return self._final_answer(call, inputs)
        if name in self.outputs.forgotten:
            return self._unknown_output(name, inputs)
        if run.filler is not None and call in self.inputs.seen \
                and not self.inputs.confirms(call, *inputs):
            return self._unknown_output(name, inputs)
        known = self.outputs.get(call)
        if known is not None:
            return self._lend(known)
        total = float('nan') if run.filler is not None else _total(inputs)
        if math.isnan(total):
            return self._unknown_output(name, inputs)
        return self._answer_to_true(call, inputs, total)

    def _final_answer(self, call: Call, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """The same in the last run, where inputs must be those that layers were solved on."""
        if self.inputs.trusts(call):
            total = _total(inputs)
            if not math.isnan(total):
                self.inputs.compare(call, Digest.of(*inputs, total=total))
        return self._unknown_output(call[0], inputs) if call[0] in self.outputs.forgotten \
            else self.outputs.take(call)

    def _answer_to_true(self, call: Call, inputs: tuple[Tensor, ...], total: float,
                        ) -> Tensor | None:
        """The same for inputs that are taken for true; captures them where their layer asks."""
        (name, index), owner, provisional = call, self.call_again, self.now.provisional
        if provisional is None:
            self.inputs.note(call, Digest.of(*inputs, total=total))
            if owner.passed(name):
                return None
        if not owner.passed(name) and provisional in (None, name):
            self.found.setdefault(name, {})[index] = owner.sampler.capture(
                name, owner.layers[name], index, owner.batch, *inputs)
        return None if provisional is not None else self._unknown_output(name, inputs)

    def _lend(self, known: Tensor) -> Tensor:
        """A copy: the caller may change it in place."""
        return self.call_again.spare.take(known, known.shape).copy_(known)

    def _unknown_output(self, name: str, inputs: tuple[Tensor, ...]) -> Tensor:
        x, shape = inputs[0], _output_shape(self.call_again.layers[name], inputs)
        if self.now.final:
            return x.new_full(shape, float('nan'))
        output = self.call_again.spare.take(x, shape)
        return output.fill_(float('nan')) if self.now.filler is None else self.now.filler(output)


def _total(inputs: tuple[Tensor, ...]) -> float:
    return sum(float(x.sum()) for x in inputs)


def _output_shape(site: QuantizedLayer | Product, inputs: tuple[Tensor, ...]) -> torch.Size:
    """Shape of what a call gives."""
    x = inputs[0]
    if isinstance(site, Product):
        return product_shape(x.shape, inputs[1].shape)
    geometry = site.geometry
    size, channels = output_size(geometry, x.shape), geometry.out_channels
    return torch.Size((*size, channels) if geometry.kind == 'linear'
                      else (size[0], channels, *size[1:]))


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
