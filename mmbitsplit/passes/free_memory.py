"""How much memory there is, and how much of it may be taken."""

from pathlib import Path

import torch

BUDGET = 0.8  # part of the available memory that a calibration may take


def memory_budget(asked: float | None, device: torch.device) -> float:
    """Bytes that may be taken: what a request says in GB, else ``BUDGET`` of what is available."""
    return BUDGET * available_bytes(device) if asked is None else asked * 1e9


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on a device, within the limits of a container."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path('/proc/meminfo')
    if not meminfo.is_file():  # no Linux: nothing is known, nothing is refused
        return 1 << 62
    fields = dict(line.split(':', 1) for line in meminfo.read_text().splitlines())
    available = int(fields['MemAvailable'].split()[0]) * 1024
    for limit, usage, stat, cache in (
            ('memory.max', 'memory.current', 'memory.stat', 'inactive_file'),
            ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes',
             'memory/memory.stat', 'total_inactive_file')):
        try:
            most = int(Path('/sys/fs/cgroup', limit).read_text())
            used = int(Path('/sys/fs/cgroup', usage).read_text())
        except (OSError, ValueError):  # no such file, or 'max'
            continue
        # What was read from files counts as used, and is given up when memory is wanted.
        available = min(available, most - used + _entry(Path('/sys/fs/cgroup', stat), cache))
    return max(0, available)


def _entry(path: Path, name: str) -> int:
    try:
        return int(dict(line.split() for line in path.read_text().splitlines())[name])
    except (OSError, KeyError, ValueError):
        return 0


def gb(size: float) -> str:
    """A size for people."""
    return f'{size / 1e9:.1f} GB'
