"""The packed checkpoint: codes, scales and float leftovers in one checked block of bytes.

A file is what ``torch.save`` makes of ``{'state_dict': {header, payload}, 'meta': {...}}``; both
values of the state dict are uint8 tensors, so that every loader of tensors hands them on, and two
tensors cost less than some hundred. The header says what lies where in the payload and carries a
checksum a tensor: torch checks none when it reads a file. ``docs/formats.md`` has every field.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.export.packed_block import (
    AGAIN,
    OF_ONE_WIDTH,
    frame,
    pack_tensors,
    plain_checksum,
    read_frame,
    unpack_tensors,
)
from mmbitsplit.export.safetensors_file import is_safetensors, load_safetensors
from mmbitsplit.export.width_parts import (
    fold_rows,
    format_of,
    further_widths,
    join_parts,
    joined_name,
    layers_with_widths,
    split_parts,
    unfold_rows,
    with_widths_up_to,
)
from mmbitsplit.models.layers.width_state import is_part

HEADER_KEY, PAYLOAD_KEY = 'packed_header', 'packed_payload'
# Format 1: the tensors under their names, and the description as JSON in a uint8 tensor. A model's
# state dict in memory has this layout still.
PLAN_KEY = 'quantization_plan'
_NOT_OURS = ('The checkpoint holds no quantization plan: it is not one that mmbitsplit wrote, or '
             'it is damaged. Load quantized.pth, or use the float config.')


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
        width_bytes: Of layers of several widths, what each takes in the file beside what all of
            them need: the narrowest of each layer under 0, further ones under their width.
        lacking: Widths of a checkpoint that was split, whose residual files were not given.
    """

    version: int
    description: dict[str, Any]
    state: dict[str, Tensor]
    meta: dict[str, Any]
    payload_bytes: int
    meta_checksum: str | None = None
    width_bytes: dict[int, int] = field(default_factory=dict)
    lacking: tuple[int, ...] = ()


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
    if not any(layers_with_widths(description)):
        return assemble(state, {'description': description}, meta, OF_ONE_WIDTH)
    return assemble(*of_widths(state, description), meta, format_of(state))


def of_widths(state: Mapping[str, Tensor], description: Mapping[str, Any],
              ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and header fields of a model with layers of several widths, parts joined."""
    joined, fields = join_parts(state, description)
    folded, kinds = fold_rows(description)
    return joined, {'description': folded, 'widths': {**fields, 'kinds': kinds}}


def assemble(state: Mapping[str, Tensor], fields: Mapping[str, Any], meta: Mapping[str, Any],
             version: int) -> dict[str, Any]:
    """Returns what is to be saved: tensors in one block, some fields in its header."""
    rows, payload = pack_tensors(state)
    header = {**fields, 'tensors': rows, 'payload_bytes': payload.numel(),
              'meta_checksum': plain_checksum(meta)}
    return {'state_dict': {HEADER_KEY: frame(header, version), PAYLOAD_KEY: payload},
            'meta': dict(meta)}


def unpack_state(state: Mapping[str, Tensor],
                 residuals: Sequence[Mapping[str, Tensor]] = ()) -> PackedCheckpoint:
    """Reads a checkpoint's ``state_dict`` of any format version; ``meta`` is left empty.

    Args:
        state: Of the file.
        residuals: Those of residual files, where it was split; in any order.

    Raises:
        ValueError: It is no packed one, of a format version that is not known, or a checksum is
            wrong; says which tensor and what to do.
    """
    if HEADER_KEY in state and PAYLOAD_KEY in state:
        return _unpack(state[HEADER_KEY], state[PAYLOAD_KEY], residuals)
    plan = state.get(PLAN_KEY)
    if plan is None or not plan.numel():
        raise ValueError(_NOT_OURS)
    tensors = {name: value for name, value in state.items() if name != PLAN_KEY}
    try:
        description = json.loads(bytes(plan.cpu().tolist()))
    except ValueError as error:
        raise ValueError(f'The quantization plan is damaged: {error}. {AGAIN}') from error
    return PackedCheckpoint(
        version=1, description=description, state=tensors, meta={},
        payload_bytes=sum(value.numel() * value.element_size() for value in tensors.values()))


def read_checkpoint(path: str | Path, residuals: Sequence[str | Path] = ()) -> PackedCheckpoint:
    """Reads and verifies a file of any format version, of torch or (``.safetensors``) safetensors.

    Args:
        path: The checkpoint; of one that was split, the base file.
        residuals: Then the residual files of some widths, from the lowest on without a gap. Widths
            beyond them are not in what is returned.

    Raises:
        ImportError: It is one of safetensors, which is not installed.
        ValueError: It is truncated, damaged, of an unknown format version or no packed checkpoint;
            or a residual file is of another one, or one between is missing.
        FileNotFoundError: There is none.
    """
    state, meta = _load(path)
    states = [_load(residual)[0] for residual in residuals]
    try:
        packed = unpack_state(state, states)
        if packed.meta_checksum is not None and not _is_of(meta, packed.meta_checksum):
            raise ValueError("The 'meta' entry is damaged: its checksum is wrong. " + AGAIN)
    except ValueError as error:
        raise ValueError(f'{", ".join(map(str, (path, *residuals)))}: {error}') from error
    return replace(packed, meta=dict(meta or {}))


def _load(path: str | Path) -> tuple[Mapping[str, Tensor], Any]:
    """State and ``meta`` of a file, not looked at."""
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
                         f'{AGAIN}') from error
    state = loaded.get('state_dict') if isinstance(loaded, dict) else None
    if not isinstance(state, Mapping) or not all(
            isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{path}: {_NOT_OURS}')
    return state, loaded.get('meta')


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
    # What a part takes depends on its values; who reads it checks it.
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape
             and not is_part(name.rpartition('.')[2])]
    if wrong:
        problems.append(f'has {len(wrong)} tensor(s) of another shape (such as {wrong[0]}: '
                        f'{tuple(state[wrong[0]].shape)}, the model has '
                        f'{tuple(wanted[wrong[0]].shape)})')
    if problems:
        raise ValueError(f'The checkpoint does not fit the model: it {" and ".join(problems)}. It '
                         'belongs to another architecture; use the config written beside it, or '
                         'the float model that was quantized.')


def _unpack(header: Tensor, payload: Tensor, residuals: Sequence[Mapping[str, Tensor]],
            ) -> PackedCheckpoint:
    fields, version = read_frame(header)
    if 'residual' in fields:
        raise ValueError(f"It is the residual file of width {fields['residual']['width']} of a "
                         'checkpoint that was split; give the base file as checkpoint, and then '
                         'residual files.')
    state = unpack_tensors(fields['tensors'], payload, fields['payload_bytes'])
    packed = PackedCheckpoint(
        version=version, description=fields['description'], state=state, meta={},
        payload_bytes=fields['payload_bytes'], meta_checksum=fields['meta_checksum'])
    if 'widths' in fields:
        return _with_widths(packed, fields['widths'], residuals)
    if residuals:
        raise ValueError('Residual files are given, and the checkpoint has one width a layer: it '
                         'was not split. Leave them out.')
    return packed


def _with_widths(packed: PackedCheckpoint, fields: Mapping[str, Any],
                 residuals: Sequence[Mapping[str, Tensor]]) -> PackedCheckpoint:
    """Takes the parts of layers of several widths out of a state and its residual files."""
    description = unfold_rows(packed.description, fields['kinds'])
    joined, lacking, payload_bytes = dict(packed.state), [], packed.payload_bytes
    if 'residuals' in fields:
        found = {}
        for residual in residuals:
            width, tensors, size = read_residual(residual, fields['id'])
            found[width], payload_bytes = tensors, payload_bytes + size
        lacking = [width for width in fields['residuals'] if width not in found]
        _check_prefix(fields['residuals'], found)
        for tensors in found.values():
            joined |= tensors
    elif residuals:
        raise ValueError('Residual files are given, and the checkpoint was not split: it has all '
                         'widths. Leave them out.')
    names = {width: joined_name(width or None) for width in (0, *further_widths(description))}
    try:
        state = split_parts(joined, description, fields)
        if lacking:
            state, description = with_widths_up_to(state, description, fields, lacking[0] - 1)
    except ValueError as error:
        raise ValueError(f'{error} {AGAIN}') from error
    return replace(packed, state=state, description=description, payload_bytes=payload_bytes,
                   width_bytes={width: joined[name].numel() for width, name in names.items()
                                if name in joined}, lacking=tuple(lacking))


def read_residual(state: Mapping[str, Tensor], of: str) -> tuple[int, dict[str, Tensor], int]:
    """Reads the state of a residual file: width, tensors, bytes of its payload.

    Args:
        state: Of the file.
        of: Which checkpoint it must be of.

    Raises:
        ValueError: It is damaged, no residual file, or of another checkpoint.
    """
    if HEADER_KEY not in state or PAYLOAD_KEY not in state:
        raise ValueError('What is given as a residual file is none: "mmbitsplit split" writes '
                         'them.')
    fields, _ = read_frame(state[HEADER_KEY])
    if 'residual' not in fields:
        raise ValueError('What is given as a residual file is a whole checkpoint; give it alone, '
                         'or files that "mmbitsplit split" wrote beside a base file.')
    width = fields['residual']['width']
    if fields['residual']['of'] != of:
        raise ValueError(f'The residual file of width {width} is of another checkpoint than the '
                         'base file; give those that were written beside it.')
    tensors = unpack_tensors(fields['tensors'], state[PAYLOAD_KEY], fields['payload_bytes'])
    return width, tensors, fields['payload_bytes']


def _check_prefix(widths: Sequence[int], found: Mapping[int, Any]) -> None:
    """Refuses residual files with one missing between them."""
    last = max(found, default=0)
    gap = [width for width in widths if width < last and width not in found]
    if gap:
        raise ValueError(f'The residual file of width {gap[0]} is missing: width {last} is made of '
                         f'all files up to it. Give it too, or none of widths above {gap[0]}.')


def _is_of(meta: Any, wanted: str) -> bool:
    try:
        return plain_checksum(meta) == wanted
    except TypeError:  # damage made of it what JSON cannot say
        return False
