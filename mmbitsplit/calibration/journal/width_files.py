"""Keeps layers solved at several widths, and what they lose the model, on disk.

A folder holds ``widths.json`` (what was asked for, and the losses so far) and a file a layer,
``0000.widths`` and so on. Layers are solved apart from each other, so that each file stands for
itself: what is damaged is solved again, and nothing else.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmbitsplit.calibration.journal.frames import Damaged, framed, unframed, write_whole
from mmbitsplit.calibration.journal.identity import OtherIdentity, check_identity
from mmbitsplit.calibration.journal.journal import (
    file_errors,
    parse_header,
    render_header,
    through_json,
)
from mmbitsplit.calibration.journal.plain_solutions import solution_to_plain, to_solution
from mmbitsplit.files import remove_stale
from mmbitsplit.planning.width_bank import Banked
from mmbitsplit.planning.width_journal import WidthJournal
from mmbitsplit.structures import Widths

HEADER = 'widths.json'
FORMAT = 1
_MAGIC = b'mmbs-wdt'
_NAME = re.compile(r'[0-9]{4,}\.widths')


class WidthFiles(WidthJournal):
    """A journal on disk; made by ``WidthFiles.open``.

    Args:
        folder: Where its files are.
        identity: What was asked for, as JSON gives it back.

    Attributes:
        problems: A line for each file that was dropped and why.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self.problems: list[str] = []
        self._solved: dict[str, dict[Widths, Banked]] = {}
        self._losses: dict[str, dict[str, list[float]]] = {}
        self._count = 0

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, Any], *, resume: bool) -> 'WidthFiles':
        """Opens the journal of a folder, or begins a new one there.

        Args:
            folder: Made if it is not there; files that are no journal's are left alone.
            identity: What layers and losses depend on (options, digest of the weights, images),
                as nested JSON-able dicts and lists.
            resume: Takes over what is there, if anything is; otherwise it is removed.

        Raises:
            ValueError: The journal there is of another identity (says what differs) or format;
                ``identity`` is not JSON-able; a file cannot be read or written.
        """
        journal = cls(Path(folder), through_json('the identity', dict(identity)))
        with file_errors(journal.folder, 'written'):
            journal.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(journal.folder)
        path = journal.folder / HEADER
        with file_errors(path, 'read'):
            header = parse_header(path.read_bytes()) if resume and path.is_file() else None
        if header is None:
            if resume and path.is_file():
                journal.problems.append(f'{path} is truncated or damaged; all is measured again.')
            journal._begin()
            return journal
        if header['format'] != FORMAT:
            raise ValueError(f'{path} is of format {header["format"]!r}, this version reads '
                             f'{FORMAT}. Run without --resume to start again.')
        check_identity(journal.folder, journal.identity, header['identity'])
        journal._losses = header['losses']
        journal._read()
        return journal

    @classmethod
    def take_over(cls, folder: str | Path, identity: Mapping[str, Any]) -> 'WidthFiles':
        """Opens the journal of a folder if it is of an identity, else begins a new one there."""
        try:
            return cls.open(folder, identity, resume=True)
        except OtherIdentity:
            return cls.open(folder, identity, resume=False)

    def solved(self) -> dict[str, dict[Widths, Banked]]:
        """See ``WidthJournal``."""
        return self._solved

    def keep_solved(self, name: str, row: Mapping[Widths, Banked]) -> None:
        """See ``WidthJournal``."""
        buffer = io.BytesIO()
        torch.save({'name': name, 'widths': {str(widths): {
            'solution': solution_to_plain(banked.solution), 'error': banked.error,
            'channels': banked.channels} for widths, banked in row.items()}}, buffer)
        path = self.folder / f'{self._count:04d}.widths'
        with file_errors(path, 'written'):
            write_whole(path, framed(_MAGIC, buffer.getvalue()))
        self._count += 1

    def losses(self) -> dict[str, dict[Widths, list[float]]]:
        """See ``WidthJournal``."""
        return {name: {Widths.read(widths): values for widths, values in row.items()}
                for name, row in self._losses.items()}

    def keep_losses(self, name: str, row: Mapping[Widths, list[float]]) -> None:
        """See ``WidthJournal``."""
        self._losses[name] = {str(widths): values for widths, values in row.items()}
        self._write_header()

    def _begin(self) -> None:
        with file_errors(self.folder, 'written'):
            (self.folder / HEADER).unlink(missing_ok=True)  # the first: without it nothing counts
            for path in self._files():
                path.unlink()
        self._write_header()

    def _write_header(self) -> None:
        path = self.folder / HEADER
        with file_errors(path, 'written'):
            write_whole(path, render_header({'format': FORMAT, 'identity': self.identity,
                                             'losses': self._losses}))

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _read(self) -> None:
        for path in self._files():
            self._count = int(path.stem) + 1
            try:
                with file_errors(path, 'read'):
                    name, row = _from_bytes(path.read_bytes())
            except Damaged as error:
                self.problems.append(f'{path} {error}; its layer is solved and measured again.')
            else:
                self._solved[name] = row
        self._losses = {name: row for name, row in self._losses.items() if name in self._solved}


def _from_bytes(data: bytes) -> tuple[str, dict[Widths, Banked]]:
    """Reads a layer's file.

    Raises:
        Damaged: It is truncated, changed or unreadable.
    """
    payload = unframed(_MAGIC, data)
    try:
        stored = torch.load(io.BytesIO(payload), map_location='cpu', weights_only=True)
        return stored['name'], {Widths.read(widths): Banked(
            to_solution(one['solution']), one['error'], one['channels'])
            for widths, one in stored['widths'].items()}
    except Exception as error:  # torch and pickle raise all kinds; any means: solve it again
        raise Damaged(f'cannot be parsed ({(str(error).splitlines() or [type(error).__name__])[0]})'
                      ) from error
