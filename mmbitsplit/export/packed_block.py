"""Tensors in one block of bytes under a header that says what lies where, every byte checked.

The header begins alike in all versions from 2 on: magic, format version, SHA-256 of version and
JSON, length of the JSON. So a newer file is told from a damaged one.
"""

import hashlib
import json
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import as_bytes, place_once
from mmbitsplit.version import __version__

FORMAT = 4  # the newest version
OF_WIDTHS = 3  # the first with layers of several widths
OF_ONE_WIDTH = 2  # that of a file without layers of several widths
AGAIN = 'Copy the file again from where it was made, or quantize again.'
_FRAME = struct.Struct('<8sI32sQ')
_MAGIC = b'mmbs-pkd'
_VERSION = struct.Struct('<I')
_DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64)}


def pack_tensors(state: Mapping[str, Tensor]) -> tuple[list[list[Any]], Tensor]:
    """Rows of name, dtype, shape, offset and checksum, and the payload (bytes,) uint8.

    Raises:
        ValueError: A tensor is of a dtype that the format does not know.
    """
    data = {name: _to_bytes(name, value) for name, value in state.items()}
    offsets, blocks = place_once(data.values())
    rows = [[name, str(value.dtype).removeprefix('torch.'), list(value.shape), offset,
             checksum(data[name])] for (name, value), offset in zip(state.items(), offsets)]
    return rows, as_tensor(b''.join(blocks))


def unpack_tensors(rows: Sequence[Sequence[Any]], payload: Tensor, payload_bytes: int,
                   ) -> dict[str, Tensor]:
    """Inverse of ``pack_tensors``.

    Args:
        rows: Of the header.
        payload: (bytes,) uint8.
        payload_bytes: That the header promises.

    Raises:
        ValueError: Bytes are missing, left over or wrong; names a tensor.
    """
    if payload.dtype != torch.uint8 or payload.numel() != payload_bytes:
        raise ValueError(f'The payload has {payload.numel()} of {payload_bytes} bytes: '
                         f'the file is truncated or damaged. {AGAIN}')
    payload = payload.cpu().contiguous()
    state, wrong = {}, []
    for name, dtype, shape, offset, wanted in rows:
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        data = payload[offset:offset + size]
        if checksum(memoryview(data.numpy())) != wanted:
            wrong.append(name)
            continue
        # A copy begins where its dtype may begin; a slice may not.
        state[name] = data.clone().view(_DTYPES[dtype]).view(shape)
    if wrong:
        raise ValueError(f'{len(wrong)} tensor(s) are damaged, their checksums are wrong (such as '
                         f'{wrong[0]}). {AGAIN}')
    return state


def frame(header: Mapping[str, Any], version: int) -> Tensor:
    """The header as it is stored, (bytes,) uint8."""
    _check_byte_order()
    text = json.dumps(header, separators=(',', ':')).encode()
    digest = hashlib.sha256(_VERSION.pack(version) + text).digest()
    return as_tensor(_FRAME.pack(_MAGIC, version, digest, len(text)) + text)


def read_frame(header: Tensor) -> tuple[dict[str, Any], int]:
    """The header's fields and the format version.

    Raises:
        ValueError: It is damaged, or of a version that is not known.
    """
    _check_byte_order()
    data = bytes(header.cpu().contiguous().numpy())
    damaged = f'The header of the checkpoint is damaged. {AGAIN}'
    if len(data) < _FRAME.size:
        raise ValueError(damaged)
    magic, version, digest, length = _FRAME.unpack_from(data)
    text = data[_FRAME.size:]
    if magic != _MAGIC or len(text) != length \
            or hashlib.sha256(_VERSION.pack(version) + text).digest() != digest:
        raise ValueError(damaged)
    if not OF_ONE_WIDTH <= version <= FORMAT:
        step = 'Install a newer mmbitsplit.' if version > FORMAT else 'Quantize again.'
        raise ValueError(f'The checkpoint is of format version {version}; mmbitsplit '
                         f'{__version__} reads the versions 1 to {FORMAT}. {step}')
    return json.loads(text), version


def as_tensor(data: bytes) -> Tensor:
    """Bytes as (bytes,) uint8."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data \
        else torch.zeros(0, dtype=torch.uint8)


def checksum(data: bytes | memoryview) -> str:
    """BLAKE2b of 8 bytes, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def plain_checksum(value: Any) -> str:
    """Checksum of what JSON can say, with sorted keys."""
    return checksum(json.dumps(value, sort_keys=True).encode())


def _to_bytes(name: str, value: Tensor) -> bytes:
    if str(value.dtype).removeprefix('torch.') not in _DTYPES:
        raise ValueError(f"Tensor '{name}' is of dtype {value.dtype}, which a packed checkpoint "
                         f'does not hold; allowed are {", ".join(_DTYPES)}.')
    return as_bytes(value)


def _check_byte_order() -> None:
    if sys.byteorder != 'little':
        raise ValueError('Packed checkpoints are little-endian and this machine is not; read '
                         'and write them on another.')
