"""Products of bytes with whole sums as Triton kernels; imported when first needed.

They do what the functions of the same names in ``byte_products`` do, to the last bit. A
convolution is an implicit product: a program reads the windows of its outputs where they lie in the
image, and nothing is unfolded. Padding and the channels that fill up a block are in the bytes
already (``round_bytes``), so that the loop over inputs has no masks and its loads go ahead of it.

The weight is the left side of each product: its operand comes from registers on every generation of
tensor cores, and there two codes of 4 bits in a byte are taken apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmbitsplit.functional.kernels.byte_products import (
    CHANNELS,
    ByteWeight,
    Rounding,
    Scaling,
    Windows,
    round_up,
)
from mmbitsplit.functional.kernels.triton_loops import ROUNDERS, _divide, _nearest

# (outputs, places) of a program, the largest first; and its warps. Compiled for sm_80 and sm_90
# none spills registers, and all fit into 99 KiB of shared memory; what is fastest is not measured.
TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (32, 64, 4), (32, 32, 2))
PAIR_TILES = TILES[2:]  # with the sums of both sides larger ones spill
STAGES = 4  # loads under way
PLACES = CHANNELS_AT_ONCE = 64  # of a program that rounds


def round_bytes(x: Tensor, rounding: Rounding, padding: Sequence[int] = (0, 0),
                padded: int | None = None) -> tuple[Tensor, Tensor]:
    """See ``byte_products.round_bytes``."""
    images, height, width, channels = x.shape
    padded = round_up(channels, CHANNELS) if padded is None else padded
    rows, columns = height + 2 * padding[0], width + 2 * padding[1]
    out = x.new_empty((images, rows, columns, padded), dtype=torch.int8)
    found = x.new_zeros(1, dtype=torch.float32)
    if not out.numel():
        return out, found
    each = 0 if rounding.scale.numel() == 1 else 1 if rounding.along == 'channel' else 2
    places = min(PLACES, _power(rows * columns))
    tiles = triton.cdiv(rows * columns, places)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _bytes_kernel[images * tiles, triton.cdiv(padded, CHANNELS_AT_ONCE)](
            x, out, found, rounding.scale, rounding.low, rounding.high, rounding.shift,
            *x.stride(), height, width, rows, columns, channels, padded, *padding,
            ROUNDER=ROUNDERS[torch.float32], EACH=each, PLACES=places,
            CHANNELS=CHANNELS_AT_ONCE, num_warps=4, enable_fp_fusion=False)
    return out, found


def multiply(weight: ByteWeight, bytes_: Tensor, found: Tensor, windows: Windows,
             scaling: Scaling, tile: dict[str, Any] | None = None) -> Tensor:
    """See ``byte_products.multiply``; ``tile``: instead of ``choose_tile``'s."""
    images, height, width, padded = bytes_.shape
    outputs, taps, held = weight.bytes.shape
    rows, columns = windows.outputs(height, width)
    y = torch.empty((images, rows, columns, outputs), dtype=scaling.dtype, device=bytes_.device)
    places = images * rows * columns
    if not y.numel():
        return y
    tile = choose_tile(outputs, places, held, bytes_.device) if tile is None else tile
    (down, right), (below, beside) = windows.stride, windows.dilation
    none = scaling.scale  # of what there is not; it is not read
    with torch.cuda.device_of(bytes_):
        _layer_kernel[_programs(outputs, places, tile),](
            weight.bytes, bytes_, y, found, scaling.scale, scaling.correction,
            none if scaling.bias is None else scaling.bias,
            none if scaling.offset is None else scaling.offset,
            outputs, places, height, width, rows, columns, padded, down, right,
            below * width * padded, beside * padded, scaling.zeros,
            BIAS=scaling.bias is not None, OFFSET=scaling.offset is not None, RELU=scaling.relu,
            PACKED=weight.packed, TAPS=taps, KERNEL_WIDTH=windows.kernel[1],
            BLOCKS=held // tile['INPUTS'], enable_fp_fusion=False, **tile)
    return y


def multiply_pairs(a: Tensor, b: Tensor, found: Tensor, zeros: tuple[Tensor, Tensor],
                   scale: Tensor, columns: int, dtype: torch.dtype = torch.float32,
                   tile: dict[str, Any] | None = None) -> Tensor:
    """See ``byte_products.multiply_pairs``."""
    images, heads, rows, padded = a.shape
    others = b.shape[2]
    y = torch.empty((images, heads, rows, others), dtype=dtype, device=a.device)
    if not y.numel():
        return y
    pairs = images * heads
    if tile is None:
        tile = choose_tile(rows, others, padded, a.device, pairs, PAIR_TILES)
    with torch.cuda.device_of(a):
        _pairs_kernel[pairs * _programs(rows, others, tile),](
            a, b, y, found, *zeros, scale, heads, rows, others, columns, padded,
            *(int(value.numel() > 1) for value in (*zeros, scale)),
            BLOCKS=padded // tile['INPUTS'], enable_fp_fusion=False, **tile)
    return y


def choose_tile(outputs: int, places: int, inputs: int, device: torch.device, times: int = 1,
                tiles: Sequence[tuple[int, int, int]] = TILES) -> dict[str, Any]:
    """What a program computes: the largest tile that gives each processor one.

    Args:
        outputs, places: Sizes of the result.
        inputs: Bytes of a tap of the weight, a multiple of ``CHANNELS``.
        device: Whose processors there are.
        times: How many such results there are.
        tiles: To choose from.
    """
    processors = 1 if device.type == 'cpu' else \
        torch.cuda.get_device_properties(device).multi_processor_count
    enough = (tile for tile in tiles if tile[0] <= _power(outputs) and tile[1] <= _power(places)
              and times * triton.cdiv(outputs, tile[0]) * triton.cdiv(places, tile[1])
              >= processors)
    rows, columns, warps = next(enough, tiles[-1])
    block = 64 if inputs % 64 == 0 else CHANNELS
    return {'OUTPUTS': rows, 'PLACES': columns, 'INPUTS': block, 'num_warps': warps,
            'num_stages': STAGES}


def _programs(outputs: int, places: int, tile: dict[str, Any]) -> int:
    return triton.cdiv(outputs, tile['OUTPUTS']) * triton.cdiv(places, tile['PLACES'])


def _power(size: int) -> int:
    return triton.next_power_of_2(max(size, 1))


@triton.jit(do_not_specialize=['height', 'width', 'rows', 'columns'])
def _bytes_kernel(x, out, found, scale, low, high, shift, image_stride, row_stride, column_stride,
                  channel_stride, height, width, rows, columns, channels, padded, above, left,
                  ROUNDER: tl.constexpr, EACH: tl.constexpr, PLACES: tl.constexpr,
                  CHANNELS: tl.constexpr):
    tiles = tl.cdiv(rows * columns, PLACES)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles * PLACES + tl.arange(0, PLACES)  # of the result
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row, column = place // columns - above, place % columns - left  # of x
    within = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = image * image_stride + row.to(tl.int64) * row_stride + column * column_stride
    # What lies outside is 0, which rounds to the byte that stands for it.
    value = tl.load(x + source[:, None] + channel[None, :] * channel_stride,
                    mask=within[:, None] & (channel < channels)[None, :], other=0.0)
    value = value.to(tl.float32)
    if EACH == 0:
        index = tl.zeros((1, 1), tl.int32)
    elif EACH == 1:
        index = tl.minimum(channel, channels - 1)[None, :]
    else:  # heads are the rows
        index = tl.minimum(tl.maximum(row, 0), height - 1)[:, None]
    code = _nearest(_divide(value, tl.load(scale + index) + tl.zeros_like(value)),
                    tl.load(low + index), tl.load(high + index), ROUNDER)
    missing = code != code
    tl.store(found, float('nan'), mask=tl.sum(tl.sum(missing.to(tl.int32), 1), 0) > 0)
    byte = tl.where(missing, 0.0, code).to(tl.int32) + tl.load(shift + index)
    byte = tl.where((channel < channels)[None, :], byte, 0).to(tl.int8)
    target = (image * rows * columns + place) * padded
    tl.store(out + target[:, None] + channel[None, :], byte,
             mask=(place < rows * columns)[:, None] & (channel < padded)[None, :])


@triton.jit(do_not_specialize=['places', 'height', 'width', 'rows', 'columns', 'zeros'])
def _layer_kernel(weight, bytes_, y, found, scale, correction, bias, offset, outputs, places,
                  height, width, rows, columns, padded, down, right, below, beside, zeros,
                  BIAS: tl.constexpr, OFFSET: tl.constexpr, RELU: tl.constexpr,
                  PACKED: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
                  BLOCKS: tl.constexpr, OUTPUTS: tl.constexpr, PLACES: tl.constexpr,
                  INPUTS: tl.constexpr):
    output, place = _tile(tl.program_id(0), outputs, OUTPUTS, PLACES)
    # Beyond the last one there is the last one again, which is not stored.
    taken = tl.minimum(place, places - 1)
    image, within = taken // (rows * columns), taken % (rows * columns)
    first = (image.to(tl.int64) * height + within // columns * down) * width \
        + within % columns * right
    inputs = tl.arange(0, INPUTS)
    left = weight + (tl.minimum(output, outputs - 1) * (TAPS * BLOCKS * INPUTS))[:, None] \
        + inputs[None, :]
    right_side = bytes_ + (first * padded)[None, :] + inputs[:, None]
    sums, _, of_inputs = _sums(left, right_side, below, beside, False, OFFSET, PACKED, TAPS,
                               KERNEL_WIDTH, BLOCKS, OUTPUTS, PLACES, INPUTS)
    known = output < outputs
    sums += tl.load(correction + output, mask=known, other=0)[:, None]
    result = sums.to(tl.float32) * tl.load(scale + output, mask=known, other=0.0)[:, None]
    if BIAS:
        result += tl.load(bias + output, mask=known, other=0.0)[:, None]
    if OFFSET:
        result += (of_inputs - zeros).to(tl.float32)[None, :] \
            * tl.load(offset + output, mask=known, other=0.0)[:, None]
    result += tl.load(found)
    if RELU:
        result = tl.where(result < 0, 0.0, result)  # NaN stays
    target = place.to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(y + target, result.to(y.dtype.element_ty), mask=known[:, None] & (place < places))


@triton.jit(do_not_specialize=['rows', 'others', 'columns'])
def _pairs_kernel(a, b, y, found, zero_a, zero_b, scale, heads, rows, others, columns, padded,
                  each_a, each_b, each_scale, BLOCKS: tl.constexpr, OUTPUTS: tl.constexpr,
                  PLACES: tl.constexpr, INPUTS: tl.constexpr):
    programs = tl.cdiv(rows, OUTPUTS) * tl.cdiv(others, PLACES)
    pair, head = (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) // programs % heads
    row, other = _tile(tl.program_id(0) % programs, rows, OUTPUTS, PLACES)
    inputs = tl.arange(0, INPUTS)
    left = a + ((pair * rows + tl.minimum(row, rows - 1)) * padded)[:, None] + inputs[None, :]
    right = b + ((pair * others + tl.minimum(other, others - 1)) * padded)[None, :] \
        + inputs[:, None]
    sums, of_a, of_b = _sums(left, right, 0, 0, True, True, False, 1, 1, BLOCKS, OUTPUTS, PLACES,
                             INPUTS)
    of_zero_a, of_zero_b = tl.load(zero_a + head * each_a), tl.load(zero_b + head * each_b)
    sums += columns * of_zero_a * of_zero_b - of_zero_b * of_a[:, None] - of_zero_a * of_b[None, :]
    result = sums.to(tl.float32) * tl.load(scale + head * each_scale) + tl.load(found)
    target = (pair * rows + row)[:, None] * others + other[None, :]
    tl.store(y + target, result.to(y.dtype.element_ty),
             mask=(row < rows)[:, None] & (other < others)[None, :])


@triton.jit
def _tile(program, outputs, OUTPUTS: tl.constexpr, PLACES: tl.constexpr):
    """(OUTPUTS,) outputs and (PLACES,) places; programs beside each other read the same places."""
    tiles = tl.cdiv(outputs, OUTPUTS)
    return program % tiles * OUTPUTS + tl.arange(0, OUTPUTS), \
        program // tiles * PLACES + tl.arange(0, PLACES)


@triton.jit
def _sums(left, right, below, beside, LEFT: tl.constexpr, RIGHT: tl.constexpr,
          PACKED: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
          BLOCKS: tl.constexpr, OUTPUTS: tl.constexpr, PLACES: tl.constexpr,
          INPUTS: tl.constexpr):
    """The loop over inputs, of all products.

    Args:
        left: (OUTPUTS, INPUTS) pointers to the first block of the weight.
        right: (INPUTS, PLACES) pointers to the first block of each window.
        below, beside: Bytes to the next tap of a window.
        LEFT, RIGHT: Whether sums of the left and the right side alone are wanted.

    Returns:
        (OUTPUTS, PLACES) int32, (OUTPUTS,) and (PLACES,) int32.
    """
    sums = tl.zeros((OUTPUTS, PLACES), tl.int32)
    of_left, of_right = tl.zeros((OUTPUTS,), tl.int32), tl.zeros((PLACES,), tl.int32)
    for step in range(TAPS * BLOCKS):  # one loop, so that loads go ahead across taps
        tap = step // BLOCKS
        there = tap // KERNEL_WIDTH * below + tap % KERNEL_WIDTH * beside + step % BLOCKS * INPUTS
        codes = tl.load(left + step * INPUTS)
        values = tl.load(right + there)
        if PACKED:
            # 16 times each code, the lower one's bits moved up, the upper one's where they are.
            sums = tl.dot((codes << 4).to(tl.int8), values, sums, out_dtype=tl.int32)
            others = tl.load(right + there + BLOCKS * INPUTS)
            sums = tl.dot((codes & -16).to(tl.int8), others, sums, out_dtype=tl.int32)
            if RIGHT:
                of_right += tl.sum(others.to(tl.int32), 0)
        else:
            sums = tl.dot(codes, values, sums, out_dtype=tl.int32)
        if LEFT:
            of_left += tl.sum(codes.to(tl.int32), 1)
        if RIGHT:
            of_right += tl.sum(values.to(tl.int32), 0)
    if PACKED:
        sums = sums >> 4
    return sums, of_left, of_right
