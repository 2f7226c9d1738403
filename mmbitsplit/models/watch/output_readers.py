"""Watches who reads the outputs of layers and batch norms; a ReLU between is looked through."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mmbitsplit.models.layers.steps import NO_STEPS, StepList
from mmbitsplit.models.watch.storages import storage_of

OPERATION, RETURNED = '<operation>', '<returned>'
_RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


@dataclass(frozen=True)
class Reading:
    """One way in which an output is used.

    Args:
        reader: Name of a layer or batch norm that takes the whole tensor as its input,
            ``OPERATION`` for anything else, views included, ``RETURNED`` where the model
            returns it.
        rectified: Whether a ReLU comes between.
    """

    reader: str
    rectified: bool


class ReaderWatch:
    """Follows outputs from where they are made to where they are read.

    Attributes:
        readings: By layer or batch norm, how the outputs of all its calls are read.
    """

    def __init__(self):
        self.readings: dict[str, set[Reading]] = {}
        # By storage: whose output it holds, and whether rectified.
        self._holds: dict[StorageWeakRef, tuple[str, bool]] = {}

    def made(self, name: str, output: Tensor, after: StepList = NO_STEPS) -> None:
        """A layer or batch norm has made an output, its class taking steps after that."""
        self.readings.setdefault(name, set())
        if after and not after.rectifies:
            self.readings[name].add(Reading(OPERATION, False))
            self._holds.pop(storage_of(output), None)
        else:
            self._holds[storage_of(output)] = (name, after.rectifies)

    def read(self, reader: str, tensors: Iterable[Tensor]) -> None:
        """Something reads tensors."""
        for tensor in tensors:
            held = self._holds.get(storage_of(tensor))
            if held is not None:
                self.readings[held[0]].add(Reading(reader, held[1]))

    def operation(self, function: Callable, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """An operation outside of layers and batch norms was run."""
        held = self._holds.get(storage_of(inputs[0])) if inputs else None
        if function not in _RELUS:
            self.read(OPERATION, inputs)
        elif held is not None:
            self._holds[storage_of(outputs[0])] = (held[0], True)
