"""Files that are there whole or as they were before, whenever the process is killed."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names machine and process, so that what a killed process left is told from what one is writing.
_HOST = re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname())
_TEMPORARY = re.compile(rf'\.(?P<name>.+)\.{re.escape(_HOST)}\.(?P<process>[0-9]+)\.tmp')


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside a file to write to; at the end of the block that takes the file's place.

    Then it is on the disk, and so is its name where the file system can. An exception in the block
    leaves the file as it was and nothing else.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be put in place.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Returns the name that this process writes to before it is that of ``path``."""
    return path.with_name(f'.{path.name}.{_HOST}.{os.getpid()}.tmp')


def remove_stale(folder: Path) -> None:
    """Removes temporary files of processes of this machine that are no more."""
    for path in list(folder.iterdir()):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _alive(int(found['process'])):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renamed and removed names last through a power cut, where the file system can."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
