"""What the tests of the journal share: entries to write, and comparing what is read."""

import copy
import dataclasses
import hashlib
from pathlib import Path

import torch

from mmbitsplit.calibration.journal import Journal, JournalEntry
from mmbitsplit.structures import LayerReport, LayerSolution, QParams

IDENTITY = {
    'quantization': {'weight': {'num_bits': 4, 'scale_search': 'mse'}, 'scope': 'all',
                     'overrides': [{'match': 'head.*', 'skip': False}], 'strength': 0.5},
    'weights': hashlib.sha256(b'weights').hexdigest(),
    'images': list(range(100, 132)),
    'versions': {'torch': '2.13.0'},
}


def entry(index: int = 0, qparams: str = 'per_tensor', bias: bool = True) -> JournalEntry:
    """A small solved layer that depends on its index alone."""
    generator = torch.Generator().manual_seed(index)
    channels = {'per_tensor': 1, 'per_channel': 2, 'none': 0}[qparams]
    inputs = None if not channels else QParams(
        scale=torch.rand(channels, generator=generator), zero_point=torch.zeros(channels),
        quant_min=0, quant_max=255, unit=channels == 1)
    solution = LayerSolution(
        codes=torch.randint(-7, 8, (3, 2, 1, 1), generator=generator, dtype=torch.int8),
        num_bits=4, weight_scale=torch.rand(3, generator=generator),
        bias=torch.randn(3, generator=generator) if bias else None, qparams=inputs,
        output_qparams=None if index % 2 else QParams(
            torch.rand(1, generator=generator), torch.tensor([7.0]), 0, 255, unit=False))
    if index % 3 == 2:
        solution = dataclasses.replace(solution, narrower=(
            dataclasses.replace(solution, num_bits=3, codes=solution.codes // 2),))
    report = LayerReport(
        name=f'layer{index}', kind='conv2d', shape=(3, 2, 1, 1), role='inner', weight_bits=4,
        activation_bits=8 if channels else None, activation_mode='ecaq' if channels else None,
        activation_symmetry='unsigned' if channels else None, strength=None,
        weight_scale=(0.1, 1 / 3), activation_scale=(1e-30, 2.5) if channels else None,
        error_rounding=float('inf'), error=0.1 + 0.2, sweeps=3, guard_taken=index % 2 == 0,
        calls=5, rows=1024, seconds=0.25, notes=['a note', 'é'],
        output_bits=None if index % 2 else 8)
    return JournalEntry(f'layer{index}', solution, report)


def plain(value):
    """Dataclasses as dicts, tensors as (dtype, shape, values): comparable with ``==``."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if dataclasses.is_dataclass(value):
        return type(value).__name__, {item.name: plain(getattr(value, item.name))
                                      for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value


def assert_entries(journal: Journal, expected: list[JournalEntry]) -> None:
    assert [plain(item) for item in journal.entries] == [plain(item) for item in expected]


def write(folder: Path, entries: list[JournalEntry], identity=IDENTITY) -> Journal:
    journal = Journal.open(folder, identity, resume=False)
    for item in entries:
        journal.append(item)
    return journal


def resume(folder: Path, identity=IDENTITY) -> Journal:
    return Journal.open(folder, identity, resume=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def changed(**changes):
    """The identity with values replaced at dotted paths (``__`` for the dot)."""
    identity = copy.deepcopy(IDENTITY)
    for path, value in changes.items():
        *parents, key = path.split('__')
        inner = identity
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    return identity
