"""Whole numbers near each other in few bits: Golomb-Rice codes, none of them out of reach.

Source: Rice and Plaunt, "Adaptive variable-length coding for efficient compression of spacecraft
television data", IEEE Transactions on Communication Technology 19 (1971), 889-897.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbitsplit.functional.stored_widths import bytes_of, pack_bits, unpack_bits

_MOST_LOW_BITS, _MOST_SHIFT = 8, 7
_EQUAL = 255  # instead of what follows the median: all are equal to it


def pack_rice(values: Tensor) -> Tensor:
    """Packs numbers by how far they are from their median, so that few bits hold most of them.

    Args:
        values: (n,) whole, each within 16 bits.

    Returns:
        uint8: the median (int16, little-endian); a byte, 255 where all are the median and nothing
        follows, else ``k + 16 s``: distances are ``d 2^s`` and have k low bits (0 to 8); of each
        z (``2 d`` upwards, ``-2 d - 1`` downwards) ``z >> k`` zero bits and a one, filled up to a
        byte; the low k bits of each z, filled up to a byte. Lowest bit first.
    """
    whole = values.detach().cpu().reshape(-1).to(torch.int64)
    centre = int(whole.median()) if whole.numel() else 0
    away = (whole - centre).numpy()
    head = np.array([centre], '<i2').tobytes()
    if not away.any():
        return _octets(head + bytes([_EQUAL]))
    shift = next(bits for bits in range(_MOST_SHIFT, -1, -1) if not (away & 2 ** bits - 1).any())
    away >>= shift
    distances = np.where(away >= 0, 2 * away, -2 * away - 1)
    low_bits = min(range(_MOST_LOW_BITS + 1),
                   key=lambda bits: int((distances >> bits).sum()) + bits * distances.size)
    ends = np.cumsum((distances >> low_bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    unary[ends] = 1
    low = pack_bits(torch.from_numpy(distances & 2 ** low_bits - 1), low_bits) \
        if low_bits else torch.zeros(0, dtype=torch.uint8)
    return _octets(head + bytes([low_bits + 16 * shift])
                   + np.packbits(unary, bitorder='little').tobytes() + low.numpy().tobytes())


def unpack_rice(data: Tensor, count: int) -> tuple[Tensor, int]:
    """Inverse of ``pack_rice``.

    Args:
        data: uint8 that begins with what was packed; more may follow.
        count: n.

    Returns:
        (n,) int64, and how many bytes they took.

    Raises:
        ValueError: There are too few bytes, or they are not of such numbers.
    """
    octets = data.cpu().numpy()
    if octets.size < 3:
        raise ValueError('bytes of packed numbers are missing.')
    centre, kind, place = int.from_bytes(octets[:2].tobytes(), 'little', signed=True), octets[2], 3
    if kind == _EQUAL:
        return torch.full((count,), centre), place
    shift, low_bits = divmod(int(kind), 16)
    if low_bits > _MOST_LOW_BITS:
        raise ValueError(f'numbers packed with {low_bits} low bits are not known.')
    ends = _ends(octets[place:], count)
    place += int(ends[-1]) // 8 + 1 if count else 0
    size = bytes_of(count, low_bits)
    if octets.size < place + size:
        raise ValueError('bytes of packed numbers are missing.')
    low = unpack_bits(data[place:place + size], low_bits, count).numpy().astype(np.int64) \
        if low_bits else np.zeros(count, np.int64)
    distances = np.diff(ends, prepend=-1) - 1 << low_bits | low
    away = np.where(distances & 1, -(distances + 1 >> 1), distances >> 1)
    return torch.from_numpy((away << shift) + centre), place + size


def _ends(octets: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Places of the first bits that are one."""
    size = count // 4 + 16  # enough for most; what follows may be long
    while True:
        ends = np.flatnonzero(np.unpackbits(octets[:size], bitorder='little'))
        if ends.size >= count:
            return ends[:count].astype(np.int64)
        if size >= octets.size:
            raise ValueError('bytes of packed numbers are missing.')
        size *= 2


def _octets(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
