"""Files of a journal: a payload that is known to be whole."""

import hashlib
import struct
from pathlib import Path

from mmbitsplit.files import replacing

FORMAT = 1
_FRAME = struct.Struct('>8sI32sQ')  # magic, format, sha256 of the payload, its length in bytes


class Damaged(Exception):
    """A file that cannot be used; the message says why, after the file's name."""


def framed(magic: bytes, payload: bytes) -> bytes:
    """What is written of a payload.

    Args:
        magic: (8,) that says what the file is.
        payload: Its content.
    """
    return _FRAME.pack(magic, FORMAT, digest(payload), len(payload)) + payload


def unframed(magic: bytes, data: bytes) -> memoryview:
    """Returns the payload of what was written.

    Raises:
        Damaged: It is truncated, changed, or something else.
    """
    if len(data) < _FRAME.size:
        raise Damaged(f'is truncated ({len(data)} bytes)')
    found, version, expected, length = _FRAME.unpack_from(data)
    if found != magic:
        raise Damaged('does not begin like a journal entry')
    if version != FORMAT:
        raise Damaged(f'is of format {version}, not {FORMAT}')
    payload = memoryview(data)[_FRAME.size:]
    if len(payload) != length:
        raise Damaged(f'is truncated or damaged ({len(payload)} of {length} bytes)')
    if digest(payload) != expected:
        raise Damaged('has a wrong checksum')
    return payload


def digest(data: bytes | memoryview) -> bytes:
    """Returns the sha256 of some bytes."""
    return hashlib.sha256(data).digest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file such that, killed at any moment, it is there whole or as it was before."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
