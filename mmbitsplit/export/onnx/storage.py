"""In how many bits an ONNX file stores codes, and how that is said.

Runtimes have kernels for weights in 8 bits and read some in 4; codes of 2, 3 or 5 bits are stored
in the next of these. What they compute is the same: only the file is larger than the packed one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from mmbitsplit.functional.packing import ONNX_BITS, onnx_bits

FORMATS = tuple(ONNX_BITS)


def count_widths(widths: Iterable[tuple[int, int]], format: str) -> list[dict[str, int]]:
    """Returns a row a width of weight codes: ``code_bits``, ``stored_bits``, ``layers``.

    Args:
        widths: Of the codes of each layer in a file, and of the codes that stand for them there.
        format: Of the file.
    """
    rows = Counter((bits, onnx_bits(needed, format)) for bits, needed in widths)
    return [{'code_bits': bits, 'stored_bits': stored, 'layers': layers}
            for (bits, stored), layers in sorted(rows.items())]


def storage_note(rows: Iterable[Mapping[str, int]], format: str) -> str:
    """Returns a sentence on codes that take more bits than they have; empty where none do.

    Args:
        rows: From ``count_widths``.
        format: Of the file.
    """
    wider = [row for row in rows if row['stored_bits'] > row['code_bits']]
    if not wider:
        return ''
    parts = []
    for bits in sorted({row['stored_bits'] for row in wider}):
        own = [f"{row['code_bits']}-bit codes of {row['layers']} "
               f"layer{'s' if row['layers'] > 1 else ''}" for row in wider
               if row['stored_bits'] == bits]
        parts.append(f'{_joined(own)} take {bits} bits each here')
    four = format == 'int8' and any(row['code_bits'] <= 4 for row in wider)
    return ('; '.join(parts) + ': ONNX runtimes have no kernels for fewer'
            + ('; --format int4 stores codes of at most 4 bits in 4' if four else '')
            + '. quantized.pth holds all codes at their own widths.')


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'
