"""A page's table of the products of activations."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.report.multiplications import percent
from mmbitsplit.report.page import Table


def products_table(products: Sequence[Mapping[str, Any]]) -> Table:
    """A row a product of ``layers.json``."""
    rows = [[row['name'], ' × '.join('×'.join(map(str, shape)) for shape in row['shapes']),
             '; '.join(_side(row, side) for side in range(2)),
             (f"{row['error']:.2e}", row['error']),
             (f"{row['error_minmax']:.2e}", row['error_minmax']),
             percent(row['multiplications']),
             ', '.join(map(str, row.get('notes') or []))] for row in products]
    return Table(['product', 'shapes', 'inputs', 'error', 'whole ranges', 'multiplications',
                  'remark'], rows, numeric=(3, 4, 5), sortable=True)


def _side(row: Mapping[str, Any], side: int) -> str:
    if row['bits'][side] is None:
        return 'float'
    softmax = ', of a softmax' if row['softmax'][side] else ''
    heads = ', a scale a head' if row['granularity'][side] == 'head' else ''
    widths = ' '.join(str(one['activation_bits']) for one in row.get('width_errors') or ()) \
        or row['bits'][side]
    return f"{widths} bits {row['symmetry'][side]}{softmax}{heads}"
