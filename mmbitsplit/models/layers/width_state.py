"""The state of a quantized layer of several widths in a checkpoint; see ``layer_state`` too.

The widest width has its tensors as a layer of one width has them, but for its codes. Beside them
stand *parts*, uint8, one a width: ``narrowest`` and ``bits_<n>`` for each further width, so that a
layer of fewer widths needs a prefix of them. A part is, one after another:

=========  =======================================================================================
flags      a byte: layout of the codes (2 bits: separate, planes, floor), whether scales and whether
           biases are whole numbers of float32 instead of steps (a bit each), offsets (2 bits: none,
           half a step, float32), 64 unless steps are as in files of format 3
codes      nested: those of the narrowest, later the bits that a width adds (``pack_nested``);
           separate: two's complement of the width. Without a gap between codes
scales     but for the widest: (out_channels,) steps as ``pack_rice`` packs them, or float32; in
           format 3 int8 steps
biases     but for the widest, where there are any: their exponent (int8) and steps as of scales,
           or values of the bias's dtype; in format 3 packed steps of six bits, then the exponent
offsets    where float32 and not the widest: (out_channels,)
=========  =======================================================================================

``narrowest`` goes on with the input, then the output, each width but the widest falling: a byte, 0
where ``narrower_qparams`` makes all of the first scale, which follows (float32); 1 where scales
(float32), zero points (int32), smallest and largest code (int32) follow.

What a row of the plan says besides: ``widths``, with ``weight``, ``input`` and ``output`` (numbers
of bits, rising), and ``nesting``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional import midrise_offset, narrower_codes, narrower_qparams
from mmbitsplit.functional.packing import as_bytes
from mmbitsplit.functional.rice_codes import pack_rice, unpack_rice
from mmbitsplit.functional.stored_widths import (
    BIAS_BITS,
    bias_codes,
    bias_of_codes,
    bytes_of,
    pack_nested,
    scale_codes,
    scale_of_codes,
    unpack_bits,
    unpack_nested,
)
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams

NARROWEST, FURTHER = 'narrowest', 'bits_'
_LAYOUTS = ('separate', 'planes', 'floor')
_WHOLE_SCALE, _WHOLE_BIAS = 4, 8
_NO_OFFSET, _HALF_STEP, _WHOLE_OFFSET = 0, 16, 32
_FEW_BITS = 64  # steps are packed in as many bits as they need


def part_names(widths: Sequence[int]) -> list[str]:
    """Names of the parts of a layer with these widths of the weight, the narrowest first."""
    return [NARROWEST, *(f'{FURTHER}{width}' for width in widths[1:])]


def is_part(name: str) -> bool:
    """Whether a tensor, by its last name, is a part."""
    return name == NARROWEST or name.removeprefix(FURTHER).isdigit() and name.startswith(FURTHER)


def has_few_bits(part: Tensor) -> bool:
    """Whether a part is as files have them from format 4 on."""
    return bool(int(part[0]) & _FEW_BITS)


def has_widths(solution: LayerSolution) -> bool:
    """Whether a layer has several widths of anything."""
    return bool(solution.narrower or solution.narrower_inputs or solution.narrower_outputs)


def widths_row(solution: LayerSolution) -> dict[str, Any]:
    """What a row of the plan says of widths."""
    row: dict[str, Any] = {'weight': sorted(one.num_bits for one in (solution, *solution.narrower))}
    for side, widest, narrower in _sides(solution):
        if narrower:
            row[side] = sorted(one.num_bits for one in (widest, *narrower))
    return {**row, 'nesting': solution.nesting} if solution.nesting else row


def with_biases(solution: LayerSolution) -> LayerSolution:
    """The same, with a bias of zeros at widths that lack one where others have one."""
    every = [one.bias for one in (solution, *solution.narrower) if one.bias is not None]
    if not every:
        return solution

    def filled(one: LayerSolution) -> LayerSolution:
        return replace(one, bias=torch.zeros_like(every[0])) if one.bias is None else one
    return replace(filled(solution), narrower=tuple(map(filled, solution.narrower)))


def stored_offset(solution: LayerSolution) -> Tensor | None:
    """The offset of the widest width where it is not half a step, which parts say."""
    offset = solution.weight_offset
    half = offset is not None and torch.equal(offset, midrise_offset(solution.weight_scale))
    return None if half else offset


# Writing.

def to_parts(solution: LayerSolution) -> dict[str, Tensor]:
    """The parts of a layer, by name.

    Args:
        solution: Whole codes of every width, or nested ones of the widest; ``with_biases``.
    """
    ordered = sorted((solution, *solution.narrower), key=lambda one: one.num_bits)
    widths = [one.num_bits for one in ordered]
    layout, codes = _packed_codes(ordered, solution)
    blocks = {}
    for name, one, packed in zip(part_names(widths), ordered, codes):
        flags, values = _values(one, ordered[-1])
        blocks[name] = bytes([layout | flags]) + as_bytes(packed) + values
    for _, widest, narrower in _sides(solution):
        for qparams in sorted(narrower, key=lambda one: -one.num_bits):
            blocks[NARROWEST] += _qparams_block(qparams, widest)
    return {name: torch.frombuffer(bytearray(block), dtype=torch.uint8)
            for name, block in blocks.items()}


def _packed_codes(ordered: Sequence[LayerSolution], widest: LayerSolution,
                  ) -> tuple[int, list[Tensor]]:
    """The layout of codes and the packed ones of each width."""
    nesting = widest.nesting or 'planes'
    nested = [narrower_codes(widest.codes, widest.num_bits, one.num_bits, nesting)
              for one in ordered]
    fits = nesting == 'floor' or int(widest.codes.min()) >= 1 - 2 ** (widest.num_bits - 1)
    if fits and all(one.codes is None or torch.equal(one.codes, made)
           for one, made in zip(ordered, nested)):
        return _LAYOUTS.index(nesting), pack_nested(
            widest.codes, [one.num_bits for one in ordered], nesting)
    return 0, [pack_nested(made if one.codes is None else one.codes, [one.num_bits], 'floor')[0]
               for one, made in zip(ordered, nested)]


def _values(one: LayerSolution, widest: LayerSolution) -> tuple[int, bytes]:
    """Flags and bytes of scales, biases and offsets of a width."""
    flags, values, steps = _FEW_BITS, b'', widest.num_bits - one.num_bits
    if one is not widest:
        scales = scale_codes(one.weight_scale, widest.weight_scale, steps)
        if torch.equal(scale_of_codes(scales, widest.weight_scale, steps), one.weight_scale):
            values += as_bytes(pack_rice(scales))
        else:
            flags, values = flags | _WHOLE_SCALE, values + as_bytes(one.weight_scale)
        if widest.bias is not None:
            codes, exponent = bias_codes(one.bias, widest.bias)
            if torch.equal(_bias(codes, exponent, widest.bias), one.bias):
                values += np.int8(exponent).tobytes() + as_bytes(pack_rice(codes))
            else:
                flags, values = flags | _WHOLE_BIAS, values + as_bytes(one.bias)
    if one.weight_offset is None:
        return flags | _NO_OFFSET, values
    if torch.equal(one.weight_offset, midrise_offset(one.weight_scale)):
        return flags | _HALF_STEP, values
    return flags | _WHOLE_OFFSET, values if one is widest else values + as_bytes(one.weight_offset)


def _qparams_block(qparams: QParams, widest: QParams) -> bytes:
    if qparams.channel_max is not None:
        raise ValueError('Inputs whose channels differ in width have several widths, which no file '
                         "holds; use bit_allocation='uniform'.")
    if _same(_made(widest, qparams.scale[0], qparams.num_bits), qparams):
        return b'\0' + as_bytes(qparams.scale[:1])
    limits = torch.tensor([qparams.quant_min, qparams.quant_max], dtype=torch.int32)
    return b'\1' + b''.join(map(as_bytes, (
        qparams.scale.float(), qparams.zero_point.to(torch.int32), limits)))


# Reading.

def from_parts(parts: Mapping[str, Tensor], row: Mapping[str, Any], widest: LayerSolution,
               geometry: LayerGeometry, kept: Sequence[int] | None = None) -> LayerSolution:
    """Inverse of ``to_parts``.

    Args:
        parts: By name.
        row: ``widths`` of the layer's row.
        widest: All of the widest width but its codes.
        geometry: Of the layer.
        kept: The first of the widths; all when not given. The last of them is the widest then.

    Raises:
        ValueError: A part is missing or has not the bytes that it must have.
    """
    widths = row['weight'] if kept is None else kept
    names = part_names(widths)
    lacking = [name for name in names if name not in parts]
    if lacking:
        raise ValueError(f"the part '{lacking[0]}' is missing.")
    readers = [_Reader(name, parts[name]) for name in names]
    found, codes, layouts = [], [], []
    count = math.prod(geometry.weight_shape)
    for width, reader, before in zip(widths, readers, (0, *widths)):
        flags = reader.byte()
        layouts.append(_LAYOUTS[flags & 3])
        bits = width - before if flags & 3 else width
        codes.append(reader.take(bytes_of(count, bits)))
        found.append(_read_width(reader, width, flags, widest))
    for place, one in enumerate(found):
        upto, of = ((codes[:place + 1], widths) if layouts[place] != 'separate'
                    else ([codes[place]], [widths[place]]))
        nesting = 'planes' if layouts[place] == 'planes' else 'floor'
        found[place] = replace(one, codes=unpack_nested(upto, of, nesting, count).view(
            geometry.weight_shape))
    sides = {}
    for side, qparams, _ in _sides(widest):
        narrower = sorted(row.get(side, ()))[:-1]
        sides[f'narrower_{side}s'] = tuple(
            _read_qparams(readers[0], qparams, num_bits) for num_bits in reversed(narrower))
    for reader in readers:
        reader.end()
    *narrower, last = found
    return replace(last, narrower=tuple(reversed(narrower)), qparams=widest.qparams,
                   output_qparams=widest.output_qparams, **sides)


def _read_width(reader: '_Reader', width: int, flags: int, widest: LayerSolution) -> LayerSolution:
    """A width without its codes."""
    channels, steps = widest.weight_scale.numel(), widest.num_bits - width
    scale, bias, offset = widest.weight_scale, widest.bias, widest.weight_offset
    if steps:
        offset = None
        if flags & _WHOLE_SCALE:
            scale = reader.tensor(torch.float32, channels)
        else:
            scale = scale_of_codes(reader.scale_steps(flags, channels), scale, steps)
        if bias is not None and flags & _WHOLE_BIAS:
            bias = reader.tensor(bias.dtype, channels)
        elif bias is not None:
            bias = _bias(*reader.bias_steps(flags, channels), bias)
        if flags & _WHOLE_OFFSET:
            offset = reader.tensor(torch.float32, channels)
    if flags & _HALF_STEP:
        offset = midrise_offset(scale)
    return LayerSolution(codes=None, num_bits=width, weight_scale=scale, bias=bias, qparams=None,
                         weight_offset=offset, nesting=widest.nesting)


def _read_qparams(reader: '_Reader', widest: QParams, num_bits: int) -> QParams:
    if not reader.byte():
        return _made(widest, reader.tensor(torch.float32, 1)[0], num_bits)
    size = widest.scale.numel()
    scale, zero_point, limits = (reader.tensor(dtype, count) for dtype, count in (
        (torch.float32, size), (torch.int32, size), (torch.int32, 2)))
    return replace(widest, scale=scale, zero_point=zero_point, quant_min=int(limits[0]),
                   quant_max=int(limits[1]))


class _Reader:
    """Takes bytes off the front of a part.

    Args:
        name: Of the part.
        data: (bytes,) uint8.
    """

    def __init__(self, name: str, data: Tensor):
        self.name, self.data, self.place = name, data.cpu(), 0

    def take(self, count: int) -> Tensor:
        """The next bytes, uint8."""
        taken = self.data[self.place:self.place + count]
        if taken.numel() < count:
            raise ValueError(f"the part '{self.name}' has {self.data.numel()} bytes, too few.")
        self.place += count
        return taken

    def byte(self) -> int:
        """The next byte."""
        return int(self.take(1))

    def tensor(self, dtype: torch.dtype, count: int) -> Tensor:
        """The next numbers of a dtype."""
        return self.take(count * dtype.itemsize).clone().view(dtype)

    def scale_steps(self, flags: int, channels: int) -> Tensor:
        """Steps of scales."""
        return self._few_bits(channels) if flags & _FEW_BITS else self.tensor(torch.int8, channels)

    def bias_steps(self, flags: int, channels: int) -> tuple[Tensor, int]:
        """Steps of biases and their exponent."""
        if flags & _FEW_BITS:
            exponent = int(self.tensor(torch.int8, 1))
            return self._few_bits(channels), exponent
        codes = unpack_bits(self.take(bytes_of(channels, BIAS_BITS)), BIAS_BITS, channels)
        half = 2 ** (BIAS_BITS - 1)
        return (codes ^ half) - half, int(self.tensor(torch.int8, 1))

    def _few_bits(self, count: int) -> Tensor:
        try:
            values, size = unpack_rice(self.data[self.place:], count)
        except ValueError as error:
            raise ValueError(f"the part '{self.name}' has {self.data.numel()} bytes, too few or "
                             f'damaged: {error}') from error
        self.place += size
        return values

    def end(self) -> None:
        """Raises ``ValueError`` where there is more."""
        if self.place < self.data.numel():
            raise ValueError(f"the part '{self.name}' has {self.data.numel()} bytes, "
                             f'{self.data.numel() - self.place} too many.')


def part_bytes(name: str, data: Tensor, row: Mapping[str, Any], channels: int,
               bias_bytes: int) -> int:
    """How many of some bytes the part is that they begin with.

    Args:
        name: Of the part.
        data: (bytes,) uint8.
        row: The layer's, with ``widths``.
        channels: Outputs of the layer.
        bias_bytes: Of a bias, 0 where there is none.

    Raises:
        ValueError: There are too few.
    """
    widths, reader = row['widths']['weight'], _Reader(name, data)
    place, flags = part_names(widths).index(name), reader.byte()
    added = widths[place] - (widths[place - 1] if place and flags & 3 else 0)
    reader.take(bytes_of(math.prod(row['shape']), added))
    if place < len(widths) - 1:
        if flags & _WHOLE_SCALE:
            reader.take(4 * channels)
        else:
            reader.scale_steps(flags, channels)
        if flags & _WHOLE_BIAS:
            reader.take(channels * bias_bytes)
        elif bias_bytes:
            reader.bias_steps(flags, channels)
        if flags & _WHOLE_OFFSET:
            reader.take(4 * channels)
    for side in ('input', 'output') if not place else ():
        for _ in row['widths'].get(side, ())[1:]:
            reader.take(8 + 8 * row[side]['size'] if reader.byte() else 4)
    return reader.place


def _sides(solution: LayerSolution) -> Iterator[tuple[str, QParams, tuple[QParams, ...]]]:
    """Input and output, where they are quantized: name, the widest, the narrower ones."""
    if solution.qparams is not None:
        yield 'input', solution.qparams, solution.narrower_inputs
    if solution.output_qparams is not None:
        yield 'output', solution.output_qparams, solution.narrower_outputs


def _made(widest: QParams, scale: Tensor, num_bits: int) -> QParams:
    """The narrower width whose first channel has a scale, as ``narrower_qparams`` makes it."""
    factor = float(scale.double() / widest.scale[0].double())
    return narrower_qparams(widest, factor, num_bits)


def _same(one: QParams, other: QParams) -> bool:
    return (one.quant_min, one.quant_max, one.unit) == (
        other.quant_min, other.quant_max, other.unit) and torch.equal(one.scale, other.scale) \
        and torch.equal(one.zero_point.to(torch.int32), other.zero_point.to(torch.int32))


def _bias(codes: Tensor, exponent: int, widest: Tensor) -> Tensor:
    return bias_of_codes(codes, exponent, widest).to(widest.dtype)
