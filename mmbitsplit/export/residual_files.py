"""A checkpoint of several widths as files: a base that runs by itself, and a file a width.

The base has what all widths need and the narrowest width of each layer; a residual file has the
parts of one further width. The base with the first few of them is the model without the widths
beyond. All carry checksums, and a residual file says of which checkpoint it is.
"""

from collections.abc import Mapping
from typing import Any

from mmbitsplit.export.packed_block import pack_tensors, plain_checksum
from mmbitsplit.export.packed_checkpoint import PackedCheckpoint, assemble, of_widths
from mmbitsplit.export.width_parts import (
    format_of,
    further_widths,
    joined_name,
    layers_with_widths,
)

BASE = 0  # instead of a width


def split_checkpoint(packed: PackedCheckpoint) -> dict[int, dict[str, Any]]:
    """What is to be saved, by further width; under ``BASE`` the base file.

    Args:
        packed: With layers of several widths.

    Raises:
        ValueError: No layer has several widths of its weight.
    """
    widths = further_widths(packed.description)
    if not any(layers_with_widths(packed.description)) or not widths:
        raise ValueError('No layer of the checkpoint has several widths of its weight, so there is '
                         'nothing to split. Quantize with method=dict(type=\'NestedBitSplit\', '
                         'widths=[...]).')
    state, fields = of_widths(packed.state, packed.description)
    version = format_of(packed.state)
    rows, _ = pack_tensors(state)
    identity = plain_checksum([(row[0], row[-1]) for row in rows])
    residuals = {width: joined_name(width) for width in widths}
    base = {name: value for name, value in state.items() if name not in residuals.values()}
    said: Mapping[str, Any] = {**fields['widths'], 'id': identity, 'residuals': widths}
    files = {BASE: assemble(base, {**fields, 'widths': said}, packed.meta, version)}
    for width, name in residuals.items():
        files[width] = assemble({name: state[name]}, {'residual': {'width': width, 'of': identity}},
                                {}, version)
    return files
