"""Records what every module call takes, gives and shares with the rest of the run.

Planning finds reconstruction units from it: calls with one tensor in and one out, nothing else
read inside and nothing else read outside.
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mmbitsplit.models.watch.carried import tensors_in
from mmbitsplit.models.watch.storages import carries_values, storage_bytes, storage_of

OUTSIDE = -1  # stands for what runs around all module calls
_CHECKS = ('isnan', 'isinf', 'isfinite', 'isposinf', 'isneginf')


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module; values are numbered, each is what a storage held for a while.

    Args:
        name: Dotted name of the module.
        parent: Number of the call around it, or ``OUTSIDE``.
        end: Number of the last call inside it, its own where there is none.
        takes: The value of its only tensor, ``None`` where it has another number of them.
        gives: The value that it returns, ``None`` where it returns anything but a tensor.
        num_bytes: Of the tensors that are made inside.
        problem: Why it is no function of one tensor alone, in words; empty where it is.
    """

    name: str
    parent: int
    end: int
    takes: int | None
    gives: int | None
    num_bytes: int
    problem: str


@dataclass(frozen=True)
class RunCalls:
    """All module calls of a run.

    Args:
        calls: In the order in which they began, so that those inside a call follow it.
        readers: By value that a call takes or gives: numbers of the calls that read it, the
            innermost ones.
    """

    calls: tuple[ModuleCall, ...]
    readers: dict[int, tuple[int, ...]]


@dataclass
class _Open:
    """A call as it is seen.

    Args:
        taken: Values of all tensors that it was given.
        given: The same of those that it returned.
        why_taken, why_given: Why these are not one floating tensor by itself, or nothing.
    """

    name: str
    parent: int
    end: int
    taken: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    why_taken: str = ''
    why_given: str = ''


@dataclass
class _Value:
    """What a storage held for a while.

    Args:
        maker: Number of the call that made it, the innermost.
        num_bytes: Of a new storage, else 0.
        live: Whether it depends on the model's input.
        constant: Whether it is a parameter or a buffer.
        decided: The operation, of indices, masks and numbers that follow from live activations.
        readers: Calls, the innermost.
    """

    maker: int
    num_bytes: int = 0
    live: bool = True
    constant: bool = False
    decided: str = ''
    readers: set[int] = field(default_factory=set)


class ModuleCallWatch:
    """Follows values through module calls.

    Args:
        model: Its parameters and buffers are no values.
    """

    def __init__(self, model: nn.Module):
        self._constants = {storage_of(held)
                           for held in itertools.chain(model.parameters(), model.buffers())}
        self._calls: list[_Open] = []
        self._values: list[_Value] = []
        self._held: dict[StorageWeakRef, int] = {}
        self._stack: list[int] = []
        self._replays: set[int] = set()
        self._decisions: dict[int, str] = {}  # by call, the first in it
        self._writes: dict[Callable, bool] = {}
        self._paused = 0

    @property
    def _here(self) -> int:
        return self._stack[-1] if self._stack else OUTSIDE

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, operations are the watcher's own."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def take_in(self, tensors: Iterable[Tensor]) -> None:
        """Tensors are the model's input, unless the run made them."""
        for tensor in tensors:
            self._value(tensor, OUTSIDE)

    def hand_out(self, tensors: Iterable[Tensor]) -> None:
        """What is around the model reads tensors."""
        for tensor in tensors:
            self._read(tensor, self._here)

    def enter(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """A module call begins."""
        number, around = len(self._calls), self._here
        call = _Open(name, around, number)
        given = tensors_in((args, kwargs))
        call.taken = [self._value(tensor, around) for tensor in given]
        call.why_taken = _why_not_one('takes', given, [*args, *kwargs.values()])
        self._calls.append(call)
        self._stack.append(number)

    def leave(self, output: Any) -> None:
        """The innermost module call ends."""
        number = self._stack.pop()
        call = self._calls[number]
        call.end = len(self._calls) - 1
        for value in call.taken:  # by a kernel that torch does not know, where no other was seen
            if not any(number <= reader <= call.end for reader in self._values[value].readers):
                self._read_value(value, number)
        given = tensors_in(output)
        call.given = [self._value(tensor, number) for tensor in given]
        call.why_given = _why_not_one('gives', given, [output])

    def replayed(self) -> None:
        """A step whose result is replayed begins."""
        self._replays.add(self._here)

    def operation(self, function: Callable, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """An operation was run."""
        if self._paused:
            return
        here = self._here
        known = [self._held.get(storage_of(tensor)) for tensor in inputs]
        activations = False  # of the model's input, among what was read
        for number, tensor in zip(known, inputs):
            if number is not None:
                self._read_value(number, here)
                activations |= self._values[number].live and carries_values(tensor)
        name = function.name().split('::')[-1].split('.')[0].strip('_')
        live = not name.startswith('new_') and not name.endswith('_like') and any(
            number is not None and self._values[number].live for number in known)
        if not outputs and activations:
            self._decisions.setdefault(here, name)
        storages = {storage_of(tensor) for tensor in inputs} if outputs else set()
        for tensor in outputs:
            storage = storage_of(tensor)
            if storage in storages and not self._changes(function):
                continue  # a view
            decides = activations and not carries_values(tensor) and name not in _CHECKS
            self._held[storage] = len(self._values)
            self._values.append(_Value(
                here, 0 if storage in storages else storage_bytes(tensor), live,
                decided=name if decides else ''))

    def _changes(self, function: Callable) -> bool:
        """Whether an operation works in place."""
        if function not in self._writes:
            self._writes[function] = function._schema.is_mutable
        return self._writes[function]

    def _value(self, tensor: Tensor, maker: int) -> int:
        """What a tensor's storage holds; something new where nobody has seen it made."""
        storage = storage_of(tensor)
        if storage not in self._held:
            constant = storage in self._constants
            self._held[storage] = len(self._values)
            self._values.append(_Value(OUTSIDE if constant else maker, live=not constant,
                                       constant=constant))
        return self._held[storage]

    def _read(self, tensor: Tensor, reader: int) -> None:
        number = self._held.get(storage_of(tensor))
        if number is not None:
            self._read_value(number, reader)

    def _read_value(self, number: int, reader: int) -> None:
        value = self._values[number]
        value.readers.add(reader)
        if value.decided:
            self._decisions.setdefault(value.maker, value.decided)

    def finish(self) -> RunCalls:
        """Returns what was seen, after the run."""
        outside, escaped = self._crossings()
        made = [0, *itertools.accumulate(self._bytes_made())]
        replays, decisions = sorted(self._replays), sorted(self._decisions)
        calls = []
        for number, call in enumerate(self._calls):
            replay = _first_inside(replays, number, call.end)
            decision = _first_inside(decisions, number, call.end)
            problem = call.why_taken or call.why_given \
                or self._crossing_problem(number, outside[number], escaped[number]) \
                or ('' if replay is None else 'a step whose result is replayed lies inside') \
                or ('' if decision is None else
                    f'what follows depends on values inside ({self._decisions[decision]})')
            calls.append(ModuleCall(
                call.name, call.parent, call.end,
                None if call.why_taken else call.taken[0],
                None if call.why_given else call.given[0],
                made[call.end + 1] - made[number], problem))
        wanted = {value for call in calls for value in (call.takes, call.gives)
                  if value is not None}
        return RunCalls(tuple(calls), {number: tuple(sorted(self._values[number].readers))
                                       for number in sorted(wanted)})

    def _bytes_made(self) -> list[int]:
        """Bytes of new storages that each call makes, those inside it not counted."""
        made = [0] * len(self._calls)
        for value in self._values:
            if value.maker != OUTSIDE:
                made[value.maker] += value.num_bytes
        return made

    def _crossings(self) -> tuple[list[set[int]], list[set[int]]]:
        """By call: values made outside and read inside; made inside and read outside."""
        outside: list[set[int]] = [set() for _ in self._calls]
        escaped: list[set[int]] = [set() for _ in self._calls]
        for number, value in enumerate(self._values):
            if value.constant:
                continue
            for reader in value.readers:
                for around in self._around(reader, but=value.maker):
                    outside[around].add(number)
                for around in self._around(value.maker, but=reader):
                    escaped[around].add(number)
        return outside, escaped

    def _around(self, number: int, but: int) -> Iterator[int]:
        """A call and those around it, from the inside out, up to one that holds another too."""
        while number != OUTSIDE and not number <= but <= self._calls[number].end:
            yield number
            number = self._calls[number].parent

    def _crossing_problem(self, number: int, outside: set[int], escaped: set[int]) -> str:
        call = self._calls[number]
        more = len(outside - set(call.taken))
        if more:
            return f'reads {_tensors(more)} from outside beside the one that it takes'
        if not number <= self._values[call.given[0]].maker <= call.end:
            return 'gives a tensor that was made before it'
        more = len(escaped - set(call.given))
        return f'{_tensors(more)} made inside {"is" if more == 1 else "are"} read outside beside ' \
               'the one that it gives' if more else ''


def _why_not_one(verb: str, tensors: list[Tensor], direct: list[Any]) -> str:
    """Why a call is not given, or does not give, one floating tensor by itself; or nothing."""
    if len(tensors) != 1:
        return f'{verb} {_tensors(len(tensors))}'
    if not tensors[0].dtype.is_floating_point:
        return f"{verb} a tensor of {str(tensors[0].dtype).removeprefix('torch.')}"
    alone = any(tensors[0] is value for value in direct)
    return '' if alone else f'{verb} its tensor in a container'


def _tensors(number: int) -> str:
    return f'{number or "no"} tensor{"" if number == 1 else "s"}'


def _first_inside(marks: list[int], number: int, end: int) -> int | None:
    """The first of sorted call numbers that lies in a call."""
    place = bisect_left(marks, number)
    return marks[place] if place < len(marks) and marks[place] <= end else None
