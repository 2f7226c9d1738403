"""How far a method is with a unit, for the next process to go on from if this one is killed.

One file, replaced whole every so many seconds and removed when the unit is done. It names the unit
and the digest of the last layer in the journal (which stands for the request, the images and all
layers before), so that it serves for nothing else.
"""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.calibration.journal.frames import framed, unframed, write_whole
from mmbitsplit.methods.unit_problem import Snapshots

FILE = 'unit.state'
EVERY = 60.0  # seconds between two states that are kept
_MAGIC = b'mmbs-unt'


@dataclass
class UnitState(Snapshots):
    """Keeps the state of a unit in a journal's folder.

    Args:
        folder: The journal's.
        unit: Name of the unit.
        after: Digest (hex) of the journal's last layer.
        kept: When a state was kept last, or begun, in seconds of the monotonic clock.
    """

    folder: Path
    unit: str
    after: str
    kept: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """See ``Snapshots``; what is damaged or of another unit is not there."""
        try:
            payload = unframed(_MAGIC, (self.folder / FILE).read_bytes())
            stored = torch.load(io.BytesIO(payload), map_location='cpu', weights_only=True)
            same = (stored['unit'], stored['after']) == (self.unit, self.after)
            return stored['state'] if same else None
        except Exception:  # no file, or torch and pickle raise all kinds: it is learned again
            return None

    def due(self) -> bool:
        """See ``Snapshots``."""
        return time.monotonic() - self.kept >= EVERY

    def save(self, state: dict[str, Any]) -> None:
        """See ``Snapshots``.

        Raises:
            ValueError: It holds what could not be read back, or cannot be written.
        """
        if not self.due():
            return
        buffer = io.BytesIO()
        torch.save({'unit': self.unit, 'after': self.after,
                    'state': _plain(state, f"The state of unit '{self.unit}'")}, buffer)
        path = self.folder / FILE
        try:
            write_whole(path, framed(_MAGIC, buffer.getvalue()))
        except OSError as error:
            raise ValueError(f'{path} cannot be written: {error}. Make room, or use another work '
                             'directory.') from error
        self.kept = time.monotonic()


def _plain(value: Any, where: str) -> Any:
    """Returns tensors as copies of their own on the CPU: a view would save all its storage.

    Raises:
        ValueError: Something is no number, string, tensor, or list or dict of them.
    """
    if isinstance(value, Tensor):
        return value.detach().to('cpu', copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _plain(one, f'{where}[{key!r}]') for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(one, f'{where}[{place}]') for place, one in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise ValueError(f'{where} is of {type(value).__name__} and cannot be kept; it must be made of '
                     'numbers, strings, tensors, and lists and dicts of them.')
