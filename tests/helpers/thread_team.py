"""A team of threads: sums and samples are exchanged as by processes, without starting any."""

import threading
from concurrent.futures import ThreadPoolExecutor

from mmbitsplit.passes.team import Team


class ThreadTeam(Team):
    """A thread among several; they meet at a barrier."""

    def __init__(self, rank, size, board):
        self.rank, self.size, self.board = rank, size, board

    def gather(self, value):
        values, barrier = self.board
        values[self.rank] = value
        barrier.wait()
        found = list(values)
        barrier.wait()
        return found

    def add_(self, *tensors):
        for tensor in tensors:
            tensor.copy_(sum(self.gather(tensor.clone())))

    def from_first(self, value):
        return self.gather(value)[0]

    def collect(self, tensors, to):
        found = self.gather(list(tensors))
        return found if self.rank == to else []

    def apart(self, work, told=lambda news: None):
        return self.gather(work(told))


def together(size, work):
    """Calls ``work(team)`` in as many threads; returns their results by rank."""
    board = [None] * size, threading.Barrier(size, timeout=60)

    def run(rank):
        try:
            return work(ThreadTeam(rank, size, board))
        except BaseException:
            board[1].abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(run, rank) for rank in range(size)]
    errors = [task.exception() for task in running]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [task.result() for task in running]
