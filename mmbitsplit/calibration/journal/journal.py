"""Keeps solved layers on disk, so that an interrupted calibration goes on where it stopped.

A folder holds ``header.json`` (what was asked for) and one file a solved layer, ``0000.layer``,
``0001.layer`` and so on, in the order they were solved, and for a unit that is being learned its
state (``unit_state``). Each file names the digest of the one before it, because a layer is
calibrated on the outputs of the layers before it: what follows a damaged or foreign file is worth
nothing. One process at a time writes a journal.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbitsplit.calibration.journal.entries import MAGIC, Entry, from_bytes, to_payload
from mmbitsplit.calibration.journal.frames import (
    FORMAT,
    Damaged,
    digest,
    framed,
    write_whole,
)
from mmbitsplit.calibration.journal.identity import AGAIN, check_identity
from mmbitsplit.calibration.journal.unit_state import FILE as STATE
from mmbitsplit.calibration.journal.unit_state import UnitState
from mmbitsplit.files import sync_folder

HEADER = 'header.json'
_LAYER_NAME = re.compile(r'([0-9]{4}|[1-9][0-9]{4,})\.layer')
_TEMPORARY_NAME = re.compile(r'\.([0-9]{4,}\.layer|header\.json|unit\.state)\..+\.tmp')


class Journal:
    """Solved layers of one calibration on disk; made by ``Journal.open``.

    Args:
        folder: Where its files are.
        identity: What was asked for, as JSON gives it back.

    Attributes:
        entries: What was found on disk and can be taken over; ``append`` does not add to it.
        problems: One line for each file that was dropped and why.
        facts: What ``remember`` has stored, as JSON gives it back.
        finished: Calibration and evaluation are done; there is nothing to take over.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self.facts: dict[str, Any] = {}
        self.finished = False
        self._count = 0  # entries on disk
        self._last = digest(json.dumps(identity, sort_keys=True).encode()).hex()

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, Any], *, resume: bool) -> 'Journal':
        """Opens the journal of a folder, or begins a new one there.

        Args:
            folder: Made if it is not there; files that are no journal's are left alone.
            identity: What the layers depend on (options, digest of the weights, images,
                versions), as nested JSON-able dicts and lists.
            resume: Takes over what is there, if anything is; otherwise it is removed.

        Raises:
            ValueError: The journal there is of another identity (says what differs) or of
                another format; ``identity`` is not JSON-able; a file cannot be read or written.
        """
        folder = Path(folder)
        with file_errors(folder, 'written'):
            folder.mkdir(parents=True, exist_ok=True)
            for path in list(folder.iterdir()):
                if _TEMPORARY_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        journal = cls(folder, through_json('the identity', dict(identity)))
        header = journal._read_header() if resume else None
        if header is None:
            journal._begin()
            return journal
        check_identity(folder, journal.identity, header['identity'])
        # Equal is not always the same text (1 and 1.0); the first entry knows the stored one.
        journal = cls(folder, header['identity'])
        journal.facts, journal.finished = header['facts'], header['finished']
        if journal.finished:
            # finish() was interrupted
            _remove(folder, [folder / STATE, *_layer_files(folder)])
        else:
            journal._read_entries()
        return journal

    def append(self, entry: Entry) -> None:
        """Writes the next solved layer, whole or not at all.

        Raises:
            ValueError: It cannot be written, or holds values that could not be read back.
        """
        assert not self.finished, 'a finished journal takes no entries'
        path = self._path(self._count)
        payload = to_payload(entry, self._last)
        data = framed(MAGIC, payload)
        try:
            from_bytes(data, self._last)
        except Damaged as error:  # such as a numpy scalar, which weights_only refuses
            raise ValueError(f"Layer '{entry.name}' cannot be kept in {path}: the entry "
                             f'{error}. Its fields must be plain numbers, strings and '
                             'tensors.') from error
        _write(path, data)
        self._count, self._last = self._count + 1, digest(payload).hex()

    def unit_state(self, unit: str) -> UnitState:
        """Where a method keeps how far it is with a unit that comes after all that is here."""
        return UnitState(self.folder, unit, self._last)

    def unit_is_done(self) -> None:
        """Removes the state of the unit whose layers have been appended.

        Raises:
            ValueError: The file cannot be removed.
        """
        _remove(self.folder, [self.folder / STATE])

    def begin_again(self) -> None:
        """Drops everything that was found or appended, and what was remembered.

        Raises:
            ValueError: A file cannot be written or removed.
        """
        self.facts = {}
        self._begin()
        self._restart()

    def keep_first(self, count: int) -> None:
        """Drops all entries but the first ones; the next is written after those.

        Args:
            count: How many stay.

        Raises:
            ValueError: A file cannot be removed.
        """
        if count == self._count:
            return
        _remove(self.folder, [path for path in _layer_files(self.folder)
                              if int(path.stem) >= count])
        self._restart()
        self._read_entries()

    def remember(self, **facts: Any) -> None:
        """Stores facts beside the header, replacing those of the same name.

        Args:
            facts: JSON-able values, such as the float model's metrics.

        Raises:
            ValueError: A fact is not JSON-able, or the header cannot be written.
        """
        facts = {name: through_json(f'the fact {name!r}', fact) for name, fact in facts.items()}
        self._write_header({**self.facts, **facts}, self.finished)
        self.facts.update(facts)

    def finish(self) -> None:
        """Notes that everything is done and removes the layer files.

        Raises:
            ValueError: The header cannot be written, or a layer file cannot be removed.
        """
        # The note comes first: interrupted in between, the journal is finished all the same.
        self._write_header(self.facts, True)
        self.finished, self.entries, self._count = True, [], 0
        _remove(self.folder, [self.folder / STATE, *_layer_files(self.folder)])

    def reopen(self) -> None:
        """Notes that there is work to do again, with all that has been remembered.

        Raises:
            ValueError: The header cannot be written.
        """
        self._write_header(self.facts, False)
        self.finished = False

    def _restart(self) -> None:
        self.entries, self._count = [], 0
        self._last = digest(json.dumps(self.identity, sort_keys=True).encode()).hex()

    def _path(self, index: int) -> Path:
        return self.folder / f'{index:04d}.layer'

    def _begin(self) -> None:
        """Removes what is there and writes a header; without a header, layers are worth nothing."""
        _remove(self.folder, [self.folder / HEADER])
        _remove(self.folder, [self.folder / STATE, *_layer_files(self.folder)])
        self._write_header({}, False)

    def _write_header(self, facts: dict[str, Any], finished: bool) -> None:
        _write(self.folder / HEADER, render_header(
            {'format': FORMAT, 'finished': finished, 'facts': facts, 'identity': self.identity}))

    def _read_header(self) -> dict[str, Any] | None:
        """Returns the stored header; ``None``, and a problem noted, if it serves for nothing."""
        path, lost = self.folder / HEADER, len(_layer_files(self.folder))
        consequence = f'the calibration starts again ({lost} solved layer(s) dropped)'
        data = _read(path)
        if data is None:
            if lost:
                self.problems.append(f'{path} is missing; {consequence}.')
            return None
        header = parse_header(data)
        if header is None:
            self.problems.append(f'{path} is truncated or damaged; {consequence}.')
        elif header.get('format') != FORMAT:
            raise ValueError(f'{path} is of journal format {header.get("format")!r}, this version '
                             f'reads {FORMAT}. {AGAIN}')
        return header

    def _read_entries(self) -> None:
        """Reads entries until one is missing or damaged; removes that one and all after it."""
        while True:
            path = self._path(self._count)
            data = _read(path)
            try:
                if data is None:
                    raise Damaged('is missing')
                entry, last = from_bytes(data, self._last)
            except Damaged as error:
                reason = str(error)
                break
            self.entries.append(entry)
            self._count, self._last = self._count + 1, last.hex()
        rest = [file for file in _layer_files(self.folder) if int(file.stem) >= self._count]
        if rest:
            later = sum(file != path for file in rest)
            self.problems.append(f'{path} {reason}; its layer is solved again, and with it '
                                 f'{later} later layer(s), which build on it.')
            _remove(self.folder, rest)


def through_json(what: str, value: Any) -> Any:
    """Returns a value as JSON gives it back, so that stored and given ones can be compared."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f'The journal cannot keep {what}: {error}. It must be made of dicts '
                         'with string keys, lists, strings, numbers and None.') from error


def render_header(body: dict[str, Any]) -> bytes:
    check = digest(json.dumps(body).encode()).hex()
    return (json.dumps({**body, 'sha256': check}, indent=1) + '\n').encode()


def parse_header(data: bytes) -> dict[str, Any] | None:
    """Returns the header, ``None`` if it is not byte for byte what ``render_header`` made."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    body.pop('sha256', None)
    return body if render_header(body) == data else None


def _layer_files(folder: Path) -> list[Path]:
    """Layer files of a folder, the last one first."""
    with file_errors(folder, 'read'):
        found = [path for path in folder.iterdir() if _LAYER_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _read(path: Path) -> bytes | None:
    """Returns the content of a file, ``None`` if there is none."""
    with file_errors(path, 'read'):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _write(path: Path, data: bytes) -> None:
    with file_errors(path, 'written'):
        write_whole(path, data)


def _remove(folder: Path, paths: list[Path]) -> None:
    with file_errors(folder, 'written'):
        for path in paths:
            path.unlink(missing_ok=True)
        sync_folder(folder)


@contextmanager
def file_errors(path: Path, verb: str) -> Iterator[None]:
    step = 'Make it readable, or run without --resume to start again.' if verb == 'read' else \
        'Make the directory writable, free some space, or choose another with --work-dir.'
    try:
        yield
    except OSError as error:
        raise ValueError(f'{path} cannot be {verb}: {error}. {step}') from error
