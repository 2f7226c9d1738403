"""What a journal keeps of a solved layer or product, and its bytes on disk."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmbitsplit.calibration.journal.frames import Damaged, digest, unframed
from mmbitsplit.calibration.journal.plain_solutions import (
    solution_to_plain,
    to_plain,
    to_product_solution,
    to_solution,
)
from mmbitsplit.functional import ActivationSamples
from mmbitsplit.structures import (
    LayerReport,
    LayerSolution,
    ProductReport,
    ProductSolution,
)

MAGIC = b'mmbs-lyr'


@dataclass(frozen=True)
class JournalEntry:
    """A solved layer; tensors that come back from disk are on the CPU.

    Args:
        name: Dotted name in the model.
        solution: What ``models.apply`` writes into the layer.
        report: Its row of ``layers.json``.
        samples: Of its inputs, for a method that needs them when all layers are solved.
    """

    name: str
    solution: LayerSolution
    report: LayerReport
    samples: ActivationSamples | None = None


@dataclass(frozen=True)
class ProductEntry:
    """A solved product of activations.

    Args:
        name: Dotted name of its module.
        solution: How its inputs are rounded.
        report: Its row of ``layers.json``.
    """

    name: str
    solution: ProductSolution
    report: ProductReport


Entry = JournalEntry | ProductEntry


def to_payload(entry: Entry, previous: str) -> bytes:
    buffer = io.BytesIO()
    more: dict[str, Any] = {'product': True} if isinstance(entry, ProductEntry) else \
        {} if entry.samples is None else {'samples': to_plain(entry.samples)}
    torch.save({'previous': previous, 'name': entry.name,
                'solution': solution_to_plain(entry.solution), 'report': asdict(entry.report),
                **more}, buffer)
    return buffer.getvalue()


def _to_entry(stored: Mapping[str, Any]) -> Entry:
    if stored.get('product'):
        return ProductEntry(stored['name'], to_product_solution(stored['solution']),
                            ProductReport(**stored['report']))
    samples = ActivationSamples(**stored['samples']) if 'samples' in stored else None
    return JournalEntry(stored['name'], to_solution(stored['solution']),
                        LayerReport(**stored['report']), samples)


def from_bytes(data: bytes, previous: str) -> tuple[Entry, bytes]:
    """Reads an entry.

    Args:
        data: Content of a layer file.
        previous: Digest (hex) that the entry must name as the one before it.

    Returns:
        The entry and its own digest.

    Raises:
        Damaged: It is truncated, changed, unreadable, or follows something else.
    """
    payload = unframed(MAGIC, data)
    try:
        stored = torch.load(io.BytesIO(payload), map_location='cpu', weights_only=True)
        follows = stored['previous']
        entry = _to_entry(stored)
    except Exception as error:  # torch and pickle raise all kinds; any means: solve it again
        reason = str(error).strip() or type(error).__name__
        raise Damaged(f'cannot be parsed ({reason.splitlines()[0]})') from error
    if follows != previous:
        raise Damaged('does not follow the entry before it (moved, or of another '
                            'calibration)')
    return entry, digest(payload)
