"""Watches who reads the outputs of layers and batch norms; a ReLU between is looked through."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdRef

from mmbitsplit.models.layer_steps import NO_STEPS, StepList

OPERATION, RETURNED = '<operation>', '<returned>'
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr,
           torch.sparse_bsc)
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


def storage_of(tensor: Tensor) -> 'StorageWeakRef | TensorRef':
    """Names a storage; no later one gets the same name, though it may reuse the memory.

    A tensor that lies in several storages or in none (sparse, jagged) has a name of its own.
    """
    if tensor.layout is not torch.strided:
        return TensorRef(tensor)
    return StorageWeakRef(tensor.untyped_storage())


def carries_values(tensor: Tensor) -> bool:
    """Whether a tensor holds activations: real or, as after an FFT, complex."""
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def odd_layout(tensor: Tensor) -> str | None:
    """What kind of tensor it is, where it is none with sizes and strides."""
    if tensor.is_nested:
        return 'nested'
    return None if tensor.layout is torch.strided else str(tensor.layout).removeprefix('torch.')


class TensorRef:
    """Names a tensor object, as ``StorageWeakRef`` names a storage."""

    cdata = None  # what a StorageWeakRef compares by: equal to none

    def __init__(self, tensor: Tensor):
        self._ref = WeakIdRef(tensor)

    def __hash__(self) -> int:
        return hash(self._ref)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorRef) and self._ref == other._ref

    def expired(self) -> bool:
        """Whether the tensor is gone."""
        return self._ref() is None


def storage_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor keeps alive; of one without a storage about what it holds."""
    if tensor.layout is torch.strided:
        return tensor.untyped_storage().nbytes()
    held = tensor._nnz() if tensor.layout in _SPARSE else tensor.numel()
    return held * (tensor.element_size() + 8 * tensor.dim())
