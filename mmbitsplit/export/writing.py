"""Files of a run: written whole or not at all, with one clear error where they cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmbitsplit.files import remove_stale, replacing, temporary_path


def check_work_dir(work_dir: str | Path, needed_bytes: int = 0) -> Path:
    """Makes the work directory, proves that it can be written to, clears what was left behind.

    Args:
        work_dir: The directory.
        needed_bytes: What will be written at least.

    Raises:
        ValueError: It cannot be made or written, or has too little room; says what to do.
    """
    path = Path(work_dir)
    probe = temporary_path(path / 'write-test')
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        probe.write_bytes(b'0')
        probe.unlink()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise unwritable(path, error) from error
    if free < needed_bytes:
        raise ValueError(f'The work directory {path} has {free / 2**20:.0f} MiB left and '
                         f'{needed_bytes / 2**20:.0f} MiB are needed; free some or choose '
                         'another directory.')
    return path


def check_file(path: str | Path, advice: str) -> None:
    """Raises ``ValueError`` with advice unless there is a file to be read."""
    if not Path(path).is_file():
        what = 'is a folder, not a file' if Path(path).is_dir() else 'does not exist'
        raise ValueError(f'{path} {what}; {advice}')


def check_output_file(path: str | Path) -> Path:
    """Proves, before hours of work, that a file can be written; makes its folder.

    Raises:
        ValueError: It cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder; name a file in it.')
    check_work_dir(path.parent)
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with an indent, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Writes text, whole or not at all."""
    _replace(path, lambda file: file.write(text.encode('utf-8')))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes, whole or not at all."""
    _replace(path, lambda file: file.write(data))


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a torch checkpoint, whole or not at all; equal ones give equal bytes."""
    # Given a path, torch writes its name into every entry of the file.
    _replace(path, lambda file: torch.save(checkpoint, file))


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    try:
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> ValueError:
    """Returns what to raise where a file of a run cannot be written."""
    return ValueError(f'{path} cannot be written: {error}. Make the directory writable, free '
                      'some space, or choose another directory.')
