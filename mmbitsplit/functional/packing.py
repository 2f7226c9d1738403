"""Packs integer codes into bytes, b bits a code, rows starting on a byte."""

import torch
from torch import Tensor

from mmbitsplit.structures.spec import check_bits


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
    shifts = torch.arange(num_bits, device=codes.device)
    bits = codes.to(torch.int32).unsqueeze(-1) >> shifts & 1  # (R, n, b)
    bits = bits.flatten(1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    return (bits << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack_codes(packed: Tensor, num_bits: int, num_codes: int) -> Tensor:
    """Inverse of ``pack_codes``: (R, bytes) uint8 to (R, num_codes) int8.

    Raises:
        ValueError: The number of bytes is not what so many codes take.
    """
    check_bits('num_bits', num_bits)
    expected = -(-num_codes * num_bits // 8)
    if packed.shape[1] != expected:
        raise ValueError(f'{num_codes} codes of {num_bits} bits take {expected} bytes a row, '
                         f'got {packed.shape[1]}.')
    bits = packed.to(torch.int32).unsqueeze(-1) >> torch.arange(8, device=packed.device) & 1
    bits = bits.flatten(1)[:, :num_codes * num_bits].unflatten(1, (num_codes, num_bits))
    values = (bits << torch.arange(num_bits, device=packed.device)).sum(-1)
    half = 2 ** (num_bits - 1)
    return torch.where(values >= half, values - 2 * half, values).to(torch.int8)
