"""The packed checkpoint: codes, scales and float leftovers in one checked block of bytes.

A file is what ``torch.save`` makes of ``{'state_dict': {header, payload}, 'meta': {...}}``; both
values of the state dict are uint8 tensors, so that every loader of tensors hands them on, and two
tensors cost less than some hundred. The header says what lies where in the payload and carries a
checksum a tensor: torch checks none when it reads a file. ``docs/formats.md`` has every field.
"""

import hashlib
import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.export.safetensors_file import is_safetensors, load_safetensors
from mmbitsplit.functional import as_bytes, place_once
from mmbitsplit.version import __version__

FORMAT = 2
HEADER_KEY, PAYLOAD_KEY = 'packed_header', 'packed_payload'
# Format 1: the tensors under their names, and the description as JSON in a uint8 tensor. A model's
# state dict in memory has this layout still.
PLAN_KEY = 'quantization_plan'

# All versions from 2 on begin like this: magic, format version, sha256 of version and JSON, length
# of the JSON. So a newer file is told from a damaged one.
_FRAME = struct.Struct('<8sI32sQ')
_MAGIC = b'mmbs-pkd'
_VERSION = struct.Struct('<I')
_AGAIN = 'Copy the file again from where it was made, or quantize again.'
_NOT_OURS = ('The checkpoint holds no quantization plan: it is not one that mmbitsplit wrote, or '
             'it is damaged. Load quantized.pth, or use the float config.')
_DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True, kw_only=True)
class PackedCheckpoint:
    """A checkpoint as it was read, every checksum verified.

    Args:
        version: Format version of the file.
        description: What ``models.describe`` said of the model.
        state: Tensors by name, the codes bit-packed as ``QuantizedLayer`` takes them.
        meta: Versions, the request, the float checkpoint, calibration images.
        payload_bytes: What the tensors take in the file.
        meta_checksum: That ``meta`` must have; ``None`` in format 1, which has no checksums.
    """

    version: int
    description: dict[str, Any]
    state: dict[str, Tensor]
    meta: dict[str, Any]
    payload_bytes: int
    meta_checksum: str | None = None


def pack_checkpoint(state: Mapping[str, Tensor], description: Mapping[str, Any],
                    meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is to be saved with ``torch.save``.

    Args:
        state: Tensors by name, as a ``QuantizedModel`` gives them but without its plan.
        description: From ``models.describe``.
        meta: Plain values that JSON can say.

    Raises:
        ValueError: A tensor is of a dtype that the format does not know.
    """
    data = {name: _to_bytes(name, value) for name, value in state.items()}
    offsets, blocks = place_once(data.values())
    rows = [[name, str(value.dtype).removeprefix('torch.'), list(value.shape), offset,
             _checksum(data[name])] for (name, value), offset in zip(state.items(), offsets)]
    payload = b''.join(blocks)
    header = {'description': description, 'tensors': rows, 'payload_bytes': len(payload),
              'meta_checksum': _meta_checksum(meta)}
    return {'state_dict': {HEADER_KEY: _as_tensor(_frame(header)),
                           PAYLOAD_KEY: _as_tensor(payload)}, 'meta': dict(meta)}


def unpack_state(state: Mapping[str, Tensor]) -> PackedCheckpoint:
    """Reads a checkpoint's ``state_dict`` of any format version; ``meta`` is left empty.

    Raises:
        ValueError: It is no packed one, of a format version that is not known, or a checksum is
            wrong; says which tensor and what to do.
    """
    if HEADER_KEY in state and PAYLOAD_KEY in state:
        return _unpack(state[HEADER_KEY], state[PAYLOAD_KEY])
    plan = state.get(PLAN_KEY)
    if plan is None or not plan.numel():
        raise ValueError(_NOT_OURS)
    tensors = {name: value for name, value in state.items() if name != PLAN_KEY}
    try:
        description = json.loads(bytes(plan.cpu().tolist()))
    except ValueError as error:
        raise ValueError(f'The quantization plan is damaged: {error}. {_AGAIN}') from error
    return PackedCheckpoint(
        version=1, description=description, state=tensors, meta={},
        payload_bytes=sum(value.numel() * value.element_size() for value in tensors.values()))


def read_checkpoint(path: str | Path) -> PackedCheckpoint:
    """Reads and verifies a file of any format version, of torch or (``.safetensors``) safetensors.

    Raises:
        ImportError: It is one of safetensors, which is not installed.
        ValueError: It is truncated, damaged, of an unknown format version or no packed checkpoint.
        FileNotFoundError: There is none.
    """
    path = Path(path)
    if not path.is_file():
        what = 'is a folder, not a file' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(f'{path} {what}; pass the checkpoint file.')
    try:
        loaded = load_safetensors(path) if is_safetensors(path) \
            else torch.load(path, map_location='cpu', weights_only=True)
    except ImportError:  # safetensors is not installed
        raise
    except Exception as error:  # torch and pickle raise all kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split('. ')[0]
        raise ValueError(f'{path} is truncated, damaged or no checkpoint ({reason}). '
                         f'{_AGAIN}') from error
    state = loaded.get('state_dict') if isinstance(loaded, dict) else None
    try:
        if not isinstance(state, Mapping) or not all(
                isinstance(value, Tensor) for value in state.values()):
            raise ValueError(_NOT_OURS)
        packed, meta = unpack_state(state), loaded.get('meta')
        if packed.meta_checksum is not None and not _is_of(meta, packed.meta_checksum):
            raise ValueError("The 'meta' entry is damaged: its checksum is wrong. " + _AGAIN)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return replace(packed, meta=dict(meta or {}))


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Checks that a state is the whole state of a model, which loaders that only warn do not.

    Args:
        state: Tensors of the checkpoint.
        wanted: Those of the model, rebuilt by the checkpoint's description.

    Raises:
        ValueError: Tensors are missing, left over or of another shape; names them.
    """
    problems = []
    for names, what in (([name for name in wanted if name not in state], 'lacks'),
                        ([name for name in state if name not in wanted], 'has, beyond the model,')):
        if names:
            problems.append(f'{what} {len(names)} tensor(s) (such as {names[0]})')
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if wrong:
        problems.append(f'has {len(wrong)} tensor(s) of another shape (such as {wrong[0]}: '
                        f'{tuple(state[wrong[0]].shape)}, the model has '
                        f'{tuple(wanted[wrong[0]].shape)})')
    if problems:
        raise ValueError(f'The checkpoint does not fit the model: it {" and ".join(problems)}. It '
                         'belongs to another architecture; use the config written beside it.')


def _unpack(header: Tensor, payload: Tensor) -> PackedCheckpoint:
    fields = _read_frame(bytes(header.cpu().contiguous().numpy()))
    if payload.dtype != torch.uint8 or payload.numel() != fields['payload_bytes']:
        raise ValueError(f'The payload has {payload.numel()} of {fields["payload_bytes"]} bytes: '
                         f'the file is truncated or damaged. {_AGAIN}')
    payload = payload.cpu().contiguous()
    state, wrong = {}, []
    for name, dtype, shape, offset, checksum in fields['tensors']:
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        data = payload[offset:offset + size]
        if _checksum(memoryview(data.numpy())) != checksum:
            wrong.append(name)
            continue
        # A copy begins where its dtype may begin; a slice may not.
        state[name] = data.clone().view(_DTYPES[dtype]).view(shape)
    if wrong:
        raise ValueError(f'{len(wrong)} tensor(s) are damaged, their checksums are wrong (such as '
                         f'{wrong[0]}). {_AGAIN}')
    return PackedCheckpoint(
        version=FORMAT, description=fields['description'], state=state, meta={},
        payload_bytes=fields['payload_bytes'], meta_checksum=fields['meta_checksum'])


def _frame(header: Mapping[str, Any]) -> bytes:
    _check_byte_order()
    text = json.dumps(header, separators=(',', ':')).encode()
    digest = hashlib.sha256(_VERSION.pack(FORMAT) + text).digest()
    return _FRAME.pack(_MAGIC, FORMAT, digest, len(text)) + text


def _read_frame(data: bytes) -> dict[str, Any]:
    """Returns the header's fields, or raises ``ValueError`` for what is wrong with it."""
    _check_byte_order()
    damaged = f'The header of the checkpoint is damaged. {_AGAIN}'
    if len(data) < _FRAME.size:
        raise ValueError(damaged)
    magic, version, digest, length = _FRAME.unpack_from(data)
    text = data[_FRAME.size:]
    if magic != _MAGIC or len(text) != length \
            or hashlib.sha256(_VERSION.pack(version) + text).digest() != digest:
        raise ValueError(damaged)
    if version != FORMAT:
        step = 'Install a newer mmbitsplit.' if version > FORMAT else 'Quantize again.'
        raise ValueError(f'The checkpoint is of format version {version}; mmbitsplit '
                         f'{__version__} reads the versions 1 to {FORMAT}. {step}')
    return json.loads(text)


def _to_bytes(name: str, value: Tensor) -> bytes:
    if str(value.dtype).removeprefix('torch.') not in _DTYPES:
        raise ValueError(f"Tensor '{name}' is of dtype {value.dtype}, which a packed checkpoint "
                         f'does not hold; allowed are {", ".join(_DTYPES)}.')
    return as_bytes(value)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data \
        else torch.zeros(0, dtype=torch.uint8)


def _checksum(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _meta_checksum(meta: Any) -> str:
    return _checksum(json.dumps(meta, sort_keys=True).encode())


def _is_of(meta: Any, checksum: str) -> bool:
    try:
        return _meta_checksum(meta) == checksum
    except TypeError:  # damage made of it what JSON cannot say
        return False


def _check_byte_order() -> None:
    if sys.byteorder != 'little':
        raise ValueError('Packed checkpoints are little-endian and this machine is not; read '
                         'and write them on another.')
