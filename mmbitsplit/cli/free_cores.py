"""As many threads as there are free cores: a command shares the machine with what runs there.

torch starts a thread a core whoever uses the cores. Beside a busy process its threads then wait for
each other at the end of every layer, each as slow as the slowest.
"""

import math
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

LOOK = 0.1  # seconds of watching; the kernel counts in hundredths
VARIABLE = 'OMP_NUM_THREADS'


def take_free_cores(environ: MutableMapping[str, str] = os.environ,
                    cores: Callable[[], int] | None = None,
                    free: Callable[[], float] | None = None) -> str:
    """Sets the number of threads of this process where some of its cores are busy.

    Args:
        environ: The process's environment. ``OMP_NUM_THREADS`` in it is the user's choice and
            stays; a launcher's processes share cores out by themselves.
        cores: Says how many cores this process may use; default: ``usable_cores``.
        free: Says how many of them are idle; default: ``idle_cores``.

    Returns:
        A sentence for the user; empty where nothing was set.
    """
    if environ.get(VARIABLE) or int(environ.get('WORLD_SIZE') or 1) > 1:
        return ''
    there = (cores or usable_cores)()
    if there < 2:
        return ''
    idle = (free or idle_cores)()
    threads = max(1, min(there, round(idle)))
    if threads == there:
        return ''
    environ[VARIABLE] = str(threads)  # for OpenMP, where torch is still to come, and children
    torch = sys.modules.get('torch')
    if torch is not None:
        torch.set_num_threads(threads)
    return (f'{there - max(0, round(idle))} of {there} cores are busy: working with {threads} '
            f'{"thread" if threads == 1 else "threads"}; set {VARIABLE} to choose')


def usable_cores() -> int:
    """Cores that this process may run on, by affinity and by its container's share."""
    cores = len(os.sched_getaffinity(0))
    share = _share()
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def idle_cores(seconds: float = LOOK) -> float:
    """Returns how many of the cores of this process stand idle, seen over a moment.

    All count as idle where the kernel does not say.
    """
    cores = os.sched_getaffinity(0)
    before = _ticks(cores)
    time.sleep(seconds)
    after = _ticks(cores)
    idle = 0.0
    for core in cores:
        if core not in before or core not in after:
            return float(len(cores))
        total = after[core][1] - before[core][1]
        idle += (after[core][0] - before[core][0]) / total if total > 0 else 1.0
    share = _share()
    return idle if share is None else min(idle, share)


def _ticks(cores: set[int], path: Path = Path('/proc/stat')) -> dict[int, tuple[int, int]]:
    """Idle and all clock ticks of each core since the start of the machine."""
    found = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *values = line.split()
        number = name.removeprefix('cpu')
        if name != number and number.isdecimal() and int(number) in cores:
            ticks = [int(value) for value in values[:8]]  # what guests take is in user's
            found[int(number)] = (sum(ticks[3:5]), sum(ticks))  # idle, and waiting for a disk
    return found


def _share(path: Path = Path('/sys/fs/cgroup/cpu.max')) -> float | None:
    """Cores that a container may use at a time; ``None`` without a limit."""
    try:
        quota, period = path.read_text().split()
        return None if quota == 'max' else int(quota) / int(period)
    except (OSError, ValueError):
        return None
