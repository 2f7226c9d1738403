"""The processes that calibrate together: each has its share of the images, sums are shared.

Everything a layer's solution depends on is a sum over positions or a small sample, so processes
exchange those and stay equal; no process sees another's images.
"""

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar('T')
Tell = Callable[[Any], None]
BEAT = 1.0  # seconds between signs of life of a process that works while others wait


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

    def collect(self, tensors: Sequence[Tensor], to: int) -> list[list[Tensor]]:
        """Returns every process's tensors by rank in the process of rank ``to``, none elsewhere."""
        return [list(tensors)]

    def apart(self, work: Callable[[Tell], T], told: Tell = lambda news: None) -> list[T]:
        """Each process does work of its own, however long it takes; nothing times out.

        Args:
            work: Of this process, without any exchange; given a function that says how far it is.
            told: What the work of any process says, or of others now and then the last of it.

        Returns:
            Every process's result by rank.

        Raises:
            ValueError: The work of one process has raised it; in all of them.
        """
        return [work(told)]

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
        self._distributed.broadcast_object_list(values, src=self._global(0), group=self._group)
        return self._unpack(values[0])

    def collect(self, tensors: Sequence[Tensor], to: int) -> list[list[Tensor]]:
        kinds = self.gather([(value.shape, value.dtype) for value in tensors])
        if self.rank != to:
            for value in tensors:
                if value.numel():
                    self._distributed.send(_bytes(value.to(self._device)), self._global(to),
                                           group=self._group)
            return []
        return [list(tensors) if rank == to else
                [self._receive(shape, dtype, rank) for shape, dtype in kinds[rank]]
                for rank in range(self.size)]

    def _receive(self, shape: torch.Size, dtype: torch.dtype, rank: int) -> Tensor:
        value = torch.empty(shape, dtype=dtype, device=self._device)
        if value.numel():
            self._distributed.recv(_bytes(value), self._global(rank), group=self._group)
        return value

    def apart(self, work: Callable[[Tell], T], told: Tell = lambda news: None) -> list[T]:
        results = _WorkApart(self, told).do(work)
        errors = [error for _, error in results if error is not None]
        if errors:
            raise errors[0]
        return [result for result, _ in results]

    def use_device(self) -> None:
        """To be called in a thread of its own before it exchanges anything."""
        if self._device.type == 'cuda':
            torch.cuda.set_device(self._device)

    def _global(self, rank: int) -> int:
        """What the world calls a process of the group."""
        return rank if self._group is None \
            else self._distributed.get_global_rank(self._group, rank)

    def _unpack(self, packed: bytes) -> Any:
        """Reads what a process of this very run wrote, tensors onto this process's device."""
        return torch.load(io.BytesIO(packed), map_location=self._device, weights_only=False)


class _WorkApart:
    """Work of this process beside that of others.

    A process that waits stands in a collective, which must end in time. So while a process works a
    thread of it joins one every ``BEAT`` seconds; those that wait join at once and wait for it.

    Args:
        team: The processes.
        told: See ``Team.apart``.
    """

    def __init__(self, team: ProcessTeam, told: Tell):
        self.team, self.told = team, told
        self.over, self.given_up = threading.Event(), False
        self.said: Any = None
        self.heard: list[Any] = []
        self.lost: BaseException | None = None

    def do(self, work: Callable[[Tell], T]) -> list[tuple[T | None, ValueError | None]]:
        """Returns result and error of every process."""
        result, error = None, None
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            result = work(self._tell)
        except ValueError as found:  # what the user can mend: all say it
            error = found
        except BaseException:
            self.given_up = True
            raise
        finally:
            self.over.set()
            while thread.is_alive():
                thread.join(BEAT / 4)
                self._pass_on()
        if self.lost is not None:
            raise self.lost
        return self.team.gather((result, error))

    def _tell(self, news: Any) -> None:
        if self.lost is not None:
            raise self.lost
        self.said = news
        self.told(news)
        self._pass_on()

    def _pass_on(self) -> None:
        heard, self.heard = self.heard, []
        for news in heard:
            self.told(news)

    def _beat(self) -> None:
        self.team.use_device()
        try:
            while not self.given_up:
                self.over.wait(BEAT)
                if self.given_up:
                    return
                said, self.said = self.said, None
                states = self.team.gather((self.over.is_set(), said))
                self.heard = [news for rank, (_, news) in enumerate(states)
                              if news is not None and rank != self.team.rank]
                if all(over for over, _ in states):
                    return
        except BaseException as error:  # told in the thread that works
            self.lost = error


def _bytes(value: Tensor) -> Tensor:
    """A tensor's memory, whatever its dtype."""
    return value.detach().contiguous().view(-1).view(torch.uint8)


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
