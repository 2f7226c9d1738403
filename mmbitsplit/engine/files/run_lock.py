"""One run at a time in a work directory."""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmengine.logging import print_log

from mmbitsplit.export.writing import unwritable

LOCK = '.running.json'
# Of file systems that know no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def only_run_in(work_dir: Path, first: bool = True) -> Iterator[None]:
    """Keeps other runs out of a work directory.

    The lock is the system's, on a file that tells who holds it: it ends with the process
    however that ends, so the file of a dead run stops nobody. Processes forked from this one
    (workers of data loaders) do not inherit it.

    Args:
        work_dir: The directory, which exists.
        first: Whether this is the first process of its run; the others need no lock.

    Raises:
        ValueError: Another run works there; says which.
    """
    if not first:
        yield
        return
    path = work_dir / LOCK
    file = _open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes with the file
        file.close()


def _open_locked(path: Path) -> TextIO:
    while True:
        try:
            file = open(path, 'a+', encoding='utf-8')
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            _lock(path, file)
            if _same_file(path, file):
                _sign(file)
                return file
        except OSError as error:
            file.close()
            raise unwritable(path, error) from error
        except BaseException:
            file.close()
            raise
        file.close()  # its run ended and removed it between opening and locking


def _sign(file: TextIO) -> None:
    file.truncate(0)
    json.dump({'pid': os.getpid(), 'host': platform.node(),
               'started': time.strftime('%Y-%m-%d %H:%M:%S')}, file)
    file.flush()


def _lock(path: Path, file: TextIO) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            print_log(f'mmbitsplit: {path.parent} is on a file system without locks; two runs '
                      'in it at a time would not be noticed', logger='current')
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(f'Another run works in {path.parent}{_holder(file)}. Wait for it, end '
                         'it, or choose another directory with --work-dir.') from error


def _holder(file: TextIO) -> str:
    """Who holds the lock, where the file tells."""
    file.seek(0)
    try:
        held: dict[str, Any] = json.load(file)
        return f' (process {held["pid"]} on {held["host"]}, since {held["started"]})'
    except (ValueError, KeyError, TypeError):  # it is just being written
        return ''


def _same_file(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
