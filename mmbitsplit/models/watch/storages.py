"""Names the storages of tensors, and says what a tensor holds."""


import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdRef

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr,
           torch.sparse_bsc)


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
