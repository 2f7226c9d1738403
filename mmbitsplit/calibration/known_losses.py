"""Losses of plans on disk, so that a search that was ended goes on."""

import json
from pathlib import Path

from mmbitsplit.files import replacing


class KnownLosses:
    """Losses by plan, of one model on some images.

    Args:
        path: Of the file.
        identity: Of model, images and options: losses of others are not taken over.
        resume: Take over what the file holds; without, it is written anew.
    """

    EVERY = 20  # plans between two writes

    def __init__(self, path: Path, identity: str, resume: bool):
        self.path, self.identity = path, identity
        self.losses: dict[str, float] = {}
        if resume and path.is_file():
            try:
                found = json.loads(path.read_text(encoding='utf-8'))
            except ValueError:
                found = {}  # damaged: measured again
            if found.get('identity') == identity:
                self.losses = dict(found['losses'])
        self._written = len(self.losses)

    def keep(self) -> None:
        """Writes now and then."""
        if len(self.losses) >= self._written + self.EVERY:
            self.write()

    def write(self) -> None:
        """Writes all, whole or not at all."""
        with replacing(self.path) as path:
            path.write_text(json.dumps({'identity': self.identity, 'losses': self.losses}),
                            encoding='utf-8')
        self._written = len(self.losses)
