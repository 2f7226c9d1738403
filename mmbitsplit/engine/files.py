"""Writes files whole or not at all: to a temporary name, then renamed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def check_work_dir(work_dir: str | Path, needed_bytes: int = 0) -> Path:
    """Makes the work directory and proves that it can be written to.

    Args:
        work_dir: The directory.
        needed_bytes: What will be written at least.

    Raises:
        ValueError: It cannot be made or written, or has too little room; says what to do.
    """
    path = Path(work_dir)
    probe = path / f'.write-test-{os.getpid()}'
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'0')
        probe.unlink()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise _unwritable(path, error) from error
    if free < needed_bytes:
        raise ValueError(f'The work directory {path} has {free / 2**20:.0f} MiB left and '
                         f'{needed_bytes / 2**20:.0f} MiB are needed; free some or choose '
                         'another with --work-dir.')
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with an indent, whole or not at all."""
    _replace(path, lambda temporary: temporary.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'))


def write_text(path: Path, text: str) -> None:
    """Writes text, whole or not at all."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a torch checkpoint, whole or not at all."""
    _replace(path, lambda temporary: torch.save(checkpoint, temporary))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> ValueError:
    return ValueError(f'{path} cannot be written: {error}. Make the directory writable, free '
                      'some space, or choose another with --work-dir.')
