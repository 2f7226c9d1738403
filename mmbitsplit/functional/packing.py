"""Packs integer codes into bytes, b bits a code, rows starting on a byte; bytes of many tensors."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mmbitsplit.structures.spec import check_bits

# Bits that codes take in the formats of an ONNX file: runtimes have kernels for no others.
ONNX_BITS = {'int8': (8,), 'int4': (4, 8)}


def onnx_bits(num_bits: int, format: str) -> int:
    """Returns the bits that a code takes in an ONNX file.

    Args:
        num_bits: Width of the code, 2 to 8.
        format: ``'int8'`` or ``'int4'``.
    """
    return next(bits for bits in ONNX_BITS[format] if num_bits <= bits)


def packed_bytes(num_codes: int, num_bits: int) -> int:
    """Returns the bytes that a row of packed codes takes."""
    return -(-num_codes * num_bits // 8)


def pack_codes(codes: Tensor, num_bits: int) -> Tensor:
    """Packs codes so that a row of n codes takes ceil(n * b / 8) bytes.

    Args:
        codes: (R, n) int8 in [-2^(b-1), 2^(b-1)-1].
        num_bits: b, 2 to 8.

    Returns:
        (R, ceil(n * b / 8)) uint8; a code's bits are in two's complement, lowest first, one
        code after another, and the row is padded with zero bits.

    Raises:
        ValueError: A code does not fit into b bits.
    """
    check_bits('num_bits', num_bits)
    half = 2 ** (num_bits - 1)
    if codes.numel() and (int(codes.min()) < -half or int(codes.max()) >= half):
        raise ValueError(f'codes from {int(codes.min())} to {int(codes.max())} do not fit into '
                         f'num_bits={num_bits}, which holds {-half} to {half - 1}.')
    # One byte a bit, where int64 shifts in torch would take eight for every bit.
    values = codes.cpu().contiguous().numpy().view(np.uint8)[..., None]
    bits = np.unpackbits(values, axis=-1, count=num_bits, bitorder='little')  # (R, n, b)
    bits = bits.reshape(len(codes), codes.shape[1] * num_bits)
    packed = np.packbits(bits, axis=-1, bitorder='little')
    return torch.from_numpy(packed).to(codes.device)


def unpack_codes(packed: Tensor, num_bits: int, num_codes: int) -> Tensor:
    """Inverse of ``pack_codes``: (R, bytes) uint8 to (R, num_codes) int8.

    Raises:
        ValueError: The number of bytes is not what so many codes take.
    """
    check_bits('num_bits', num_bits)
    expected = packed_bytes(num_codes, num_bits)
    if packed.shape[1] != expected:
        raise ValueError(f'{num_codes} codes of {num_bits} bits take {expected} bytes a row, '
                         f'got {packed.shape[1]}.')
    bits = np.unpackbits(packed.cpu().contiguous().numpy(), axis=-1,
                         count=num_codes * num_bits, bitorder='little')
    bits = bits.reshape(len(packed), num_codes, num_bits)
    values = np.packbits(bits, axis=-1, bitorder='little')[..., 0]  # without sign
    half = np.uint8(2 ** (num_bits - 1))
    codes = ((values ^ half) - half).view(np.int8)  # wraps where the sign bit was set
    return torch.from_numpy(codes).to(packed.device)


def as_bytes(value: Tensor) -> bytes:
    """Returns what a tensor holds, as a file stores it."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def place_once(blocks: Iterable[bytes]) -> tuple[list[int], list[bytes]]:
    """Places blocks one after the other, equal ones once.

    Layers under two names are equal, and so are zero points of 0.

    Returns:
        Where each block begins, and the blocks that are stored.
    """
    places: dict[bytes, int] = {}
    offsets, end = [], 0
    for block in blocks:
        if block not in places:
            places[block], end = end, end + len(block)
        offsets.append(places[block])
    return offsets, list(places)


def payload_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes that tensors take in a packed file."""
    return sum(map(len, place_once(map(as_bytes, tensors))[1]))
