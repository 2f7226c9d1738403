"""In how many bits an ONNX file stores codes, and how that is said.

Runtimes have kernels for weights in 8 bits and read some in 4; codes of 2, 3 or 5 bits are stored
in the next of these. What they compute is the same: only the file is larger than the packed one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

FORMATS = ('int8', 'int4')
STORED_BITS = {'int8': (8,), 'int4': (4, 8)}


def stored_bits(num_bits: int, format: str) -> int:
    """Returns the bits that a code takes in a file of a format.

    Args:
        num_bits: Width of the code, 2 to 8.
        format: One of ``FORMATS``.
    """
    return next(bits for bits in STORED_BITS[format] if num_bits <= bits)


def count_widths(widths: Iterable[int], format: str) -> list[dict[str, int]]:
    """Returns a row a width of weight codes: ``code_bits``, ``stored_bits``, ``layers``.

    Args:
        widths: Of the codes of each layer in a file.
        format: Of the file.
    """
    return [{'code_bits': bits, 'stored_bits': stored_bits(bits, format), 'layers': layers}
            for bits, layers in sorted(Counter(widths).items())]


def storage_note(rows: Iterable[Mapping[str, int]], format: str) -> str:
    """Returns a sentence on codes that take more bits than they have; empty where none do.

    Args:
        rows: From ``count_widths``.
        format: Of the file.
    """
    wider = [row for row in rows if row['stored_bits'] > row['code_bits']]
    if not wider:
        return ''
    told = ', '.join(f"{row['code_bits']}-bit codes of {row['layers']} "
                     f"layer{'s' if row['layers'] > 1 else ''} take {row['stored_bits']} bits"
                     for row in wider)
    four = format == 'int8' and any(row['code_bits'] <= 4 for row in wider)
    return (f'{told} a weight in this file, as ONNX runtimes have kernels for no fewer'
            + ("; format int4 stores those of at most 4 bits in 4" if four else '')
            + '. quantized.pth holds codes at their own widths')
