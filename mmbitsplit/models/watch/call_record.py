"""Records which operations a module's class runs on its input, in one call."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from mmbitsplit.models.watch.storages import storage_of


class NotUnderstood(Exception):
    """What a class does cannot be part of a quantized layer; the message is a verb phrase."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input, by its number; 0 is the input."""

    index: int


@dataclass(frozen=True)
class Node:
    """One operation on values.

    Args:
        name: In ``torch.ops.aten``, without the underscore of what works in place.
        overload: Such as ``'Tensor'``.
        args, kwargs: As given, with ``Value`` in place of tensors that depend on the input.
        outputs: Numbers of the values that it made.
        foreign: Whether it is no operation of torch's own.
    """

    name: str
    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    foreign: bool = False

    @property
    def named(self) -> dict[str, Any]:
        """All arguments by their names in torch's schema, defaults filled in."""
        schema = getattr(getattr(torch.ops.aten, self.name), self.overload)._schema
        given = {item.name: value for item, value in zip(schema.arguments, self.args)}
        return {item.name: {**given, **self.kwargs}.get(item.name, item.default_value)
                for item in schema.arguments}

    @property
    def inputs(self) -> set[int]:
        """Numbers of the values that it reads."""
        return {leaf.index for leaf in tree_flatten((self.args, self.kwargs))[0]
                if isinstance(leaf, Value)}


class CallRecord:
    """What was seen in one call.

    Operations on parameters alone leave no trace: their results are constants to those on values.

    Args:
        x: The call's input.
    """

    def __init__(self, x: Tensor):
        self.tensors = [x]  # by number; held, so that no other tensor gets their id meanwhile
        self.nodes: list[Node] = []
        self.problem: str | None = None
        self.closed = False
        self._returned: tuple[Any, int | None] = (None, None)  # and its version
        self._index = {id(x): 0}
        self._storages = {storage_of(x)}

    def operation(self, function: Any, args: tuple, kwargs: dict | None, out: Any) -> None:
        """Takes note of an operation that was run."""
        inputs = tree_flatten((args, kwargs or {}))[0]
        if not any(isinstance(leaf, Tensor) and self._depends(leaf) for leaf in inputs):
            return
        outputs = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        if not outputs:
            self.problem = self.problem or 'reads numbers off its input'
            return
        args, kwargs = tree_map_only(Tensor, self._refer, (args, kwargs or {}))
        changed = {id(leaf) for leaf in inputs} & {id(leaf) for leaf in outputs}
        if changed and any(storage_of(leaf) == storage_of(self.tensors[0])
                           for leaf in outputs if id(leaf) in changed):
            self.problem = self.problem or 'changes its input in place'
        numbers = []
        for tensor in outputs:
            numbers.append(len(self.tensors))
            self._index[id(tensor)] = numbers[-1]
            self._storages.add(storage_of(tensor))
            self.tensors.append(tensor)
        name, _, overload = str(function).removeprefix('aten.').partition('.')
        self.nodes.append(Node(name.removesuffix('_') if changed else name, overload, args, kwargs,
                               tuple(numbers), not str(function).startswith('aten.')))

    def close(self, output: Any) -> None:
        """Nothing that comes is part of the call, which has given an output."""
        self.closed, self._returned = True, (output, _version(output))

    def end(self, output: Tensor) -> Value:
        """Names the output of the call.

        Raises:
            NotUnderstood: Something that was seen rules the call out, or the output is another.
        """
        if self.problem is not None:
            raise NotUnderstood(self.problem)
        self.check_returned(output)
        return self.find(output)

    def check_returned(self, output: Tensor) -> None:
        """Raises ``NotUnderstood`` where the class has returned something else."""
        if self.closed and (output is not self._returned[0]
                            or _version(output) != self._returned[1]):
            raise NotUnderstood('has a hook that changes what it computes')

    def find(self, tensor: Tensor) -> Value:
        """Names a tensor that depends on the input.

        Raises:
            NotUnderstood: It was made by something that was not seen.
        """
        index = self._index.get(id(tensor))
        if index is None:  # another handle to the same elements
            index = next((number for number in reversed(range(len(self.tensors)))
                          if same_elements(self.tensors[number], tensor)), None)
        if index is None:
            raise NotUnderstood('computes in a way that cannot be followed')
        return Value(index)

    def _depends(self, tensor: Tensor) -> bool:
        return id(tensor) in self._index or (tensor.numel() > 0
                                             and storage_of(tensor) in self._storages)

    def _refer(self, tensor: Tensor) -> Any:
        if not self._depends(tensor):
            return tensor
        try:
            return self.find(tensor)
        except NotUnderstood as error:
            self.problem = self.problem or str(error)
            return tensor

    def path(self, start: int, end: int) -> list[Node]:
        """The operations that lead from one value to another, in order.

        Raises:
            NotUnderstood: The other one depends on values that ``start`` does not.
        """
        producers = {number: node for node in self.nodes for number in node.outputs}
        wanted, found = {end}, []
        while wanted:
            number = max(wanted)
            wanted.discard(number)
            if number == start:
                continue
            if number not in producers:
                raise NotUnderstood('uses its input again after the product')
            node = producers[number]
            if node.outputs[0] != number:
                raise NotUnderstood(f'uses a second result of aten.{node.name}')
            found.append(node)
            wanted |= node.inputs
        return found[::-1]


def _version(tensor: Any) -> int | None:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None


def same_elements(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are handles to the same elements, in the same order."""
    return one.shape == other.shape and one.stride() == other.stride() \
        and one.storage_offset() == other.storage_offset() and one.dtype == other.dtype \
        and storage_of(one) == storage_of(other)
