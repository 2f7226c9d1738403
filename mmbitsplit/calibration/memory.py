"""What a calibration will hold in memory, estimated before it starts, and what there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmbitsplit.calibration.evidence import MOST_INPUTS_FOR_GRAM
from mmbitsplit.calibration.sampling import rows_per_call
from mmbitsplit.calibration.shared import Owner
from mmbitsplit.functional.bitsplit_rows import PART
from mmbitsplit.functional.statistics import MOST_INPUTS_IN_DOUBLE
from mmbitsplit.models import DataFlow, QuantizedLayer

BUDGET = 0.8  # part of the available memory that a calibration may take
# Copies of a layer's sampled rows and of its gram that are alive at once while it is solved.
ROW_COPIES, GRAM_COPIES = 3, 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process will hold beyond what it holds now.

    Args:
        suspended: Of all batches at the layer where their forwards hold most.
        targets: Float outputs at the sampled positions.
        solving: Rows and sums of the largest layer.
    """

    suspended: int
    targets: int
    solving: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.suspended + self.targets + self.solving


def estimate_memory(flow: DataFlow, layers: Mapping[str, QuantizedLayer],
                    owners: Mapping[str, Owner], sizes: Mapping[int, float],
                    rows_per_layer: int, num_batches: int) -> MemoryEstimate:
    """Estimates from one watched batch what all batches of this process will hold.

    Args:
        flow: What was seen of the watched batch.
        layers: Planned layers.
        owners: Calls that are repeated.
        sizes: Of this process's batches, in units of the watched batch.
        rows_per_layer: Sampled positions of a layer.
        num_batches: Batches of all processes.
    """
    held = [flow.live_bytes[name] for name in layers
            if not any(name in owner.layers for owner in owners.values())]
    for owner in owners.values():
        before = min(flow.live_bytes[name] for name in owner.layers)
        outputs = {name: 4 * sum(flow.output_sizes[name]) for name in owner.layers}
        kept = sum(size for name, size in outputs.items() if name not in owner.readers)
        passing = sorted((outputs[name] for name in owner.readers), reverse=True)
        held.append(before + kept + sum(passing[:2]))
    targets = solving = 0
    for name, layer in layers.items():
        outputs = layer.geometry.out_channels
        most = rows_per_call(rows_per_layer, num_batches, flow.calls[name])
        rows = sum(min(most, int(size * scale / outputs)) for scale in sizes.values()
                   for size in flow.output_sizes[name])
        inputs = layer.geometry.inputs_per_output
        targets += 4 * rows * outputs
        real = 8 if inputs <= MOST_INPUTS_IN_DOUBLE else 4
        grams = GRAM_COPIES * inputs if inputs <= MOST_INPUTS_FOR_GRAM else PART
        solving = max(solving, layer.geometry.groups * inputs * (
            4 * ROW_COPIES * rows + real * grams))
    return MemoryEstimate(int(max(held, default=0) * sum(sizes.values())), targets, solving)


def check_memory(estimate: MemoryEstimate, budget: int, num_images: int,
                 num_processes: int = 1) -> None:
    """Raises ``ValueError`` when the estimate exceeds the budget; says how many images fit.

    Args:
        estimate: Of this process.
        budget: Bytes.
        num_images: Of this process.
        num_processes: How many share the images; the advice is about all of them.
    """
    if estimate.total <= budget:
        return
    growing = estimate.suspended  # the rest depends on the number of rows, not of images
    fit = int(num_images * max(0, budget - estimate.targets - estimate.solving)
              / max(1, growing))
    fit *= num_processes
    advice = f'about {fit} images would fit: set quantization.calibration.num_images={fit}' \
        if fit else 'not one image would fit: set quantization.calibration.rows_per_layer lower'
    raise ValueError(
        f'Calibrating on {num_images} images would hold about {_gb(estimate.total)} '
        f'({_gb(estimate.suspended)} of suspended forwards, {_gb(estimate.targets)} of float '
        f'outputs, {_gb(estimate.solving)} to solve the largest layer); the budget is '
        f'{_gb(budget)}. {advice}, share the images between several processes, or raise '
        'quantization.calibration.memory_budget (GB) if you know better.')


def batch_size(batch: Any) -> int:
    """Number of elements of all tensors in a batch, at least 1."""
    return max(1, sum(leaf.numel() for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)))


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


def _gb(size: int) -> str:
    return f'{size / 1e9:.1f} GB'
