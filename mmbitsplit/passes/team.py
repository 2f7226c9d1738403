"""The processes that calibrate together: each has its share of the images, sums are shared.

Everything a layer's solution depends on is a sum over positions or a small sample, so processes
exchange those and stay equal; no process sees another's images.
"""

import io
from typing import Any

import torch
from torch import Tensor


class Team:
    """One process alone; ``ProcessTeam`` is several.

    Attributes:
        rank, size: Number of this process, and how many there are.
    """

    rank = 0
    size = 1

    def batches(self, count: int) -> range:
        """Global numbers of this process's batches, of ``count`` in all: every size-th."""
        return range(self.rank, count, self.size)

    def add_(self, *tensors: Tensor) -> None:
        """Sums tensors over all processes, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Returns every process's value, by rank."""
        return [value]

    def from_first(self, value: Any) -> Any:
        """Returns the first process's value."""
        return value

    def total(self, value: int) -> int:
        """Returns the sum of a number over all processes."""
        return sum(self.gather(value))

    def share(self, count: int, unit: int = 1) -> slice:
        """Part of ``count`` things that this process works on, in whole units but for the last."""
        units = -(-count // unit)
        return slice(units * self.rank // self.size * unit,
                     min(units * (self.rank + 1) // self.size * unit, count))


class ProcessTeam(Team):
    """The processes of a ``torch.distributed`` group (gloo on CPUs, NCCL on GPUs).

    A process that dies closes its connections, and a collective that waits for it raises.

    Args:
        group: ``None`` for all processes.
    """

    def __init__(self, group: Any = None):
        from torch import distributed
        self._distributed, self._group = distributed, group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        self._device = torch.device('cuda', torch.cuda.current_device()) \
            if distributed.get_backend(group) == 'nccl' else torch.device('cpu')

    def add_(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            moved = tensor.to(self._device).contiguous()
            self._distributed.all_reduce(moved, group=self._group)
            if moved is not tensor:
                tensor.copy_(moved)

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.size
        self._distributed.all_gather_object(values, _pack(value), group=self._group)
        return [self._unpack(packed) for packed in values]

    def from_first(self, value: Any) -> Any:
        values = [_pack(value) if self.rank == 0 else None]
        first = 0 if self._group is None else self._distributed.get_global_rank(self._group, 0)
        self._distributed.broadcast_object_list(values, src=first, group=self._group)
        return self._unpack(values[0])

    def _unpack(self, packed: bytes) -> Any:
        """Reads what a process of this very run wrote, tensors onto this process's device."""
        return torch.load(io.BytesIO(packed), map_location=self._device, weights_only=False)


def _pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)  # a pickle alone would put tensors onto the sender's GPU
    return buffer.getvalue()


def current_team() -> Team:
    """All processes of ``torch.distributed`` where it runs with several, else one alone."""
    from torch import distributed
    if distributed.is_available() and distributed.is_initialized() \
            and distributed.get_world_size() > 1:
        return ProcessTeam()
    return Team()
