"""Says how much of what a model multiplies is quantized."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_NAMED = 3


def multiplications_text(shares: Mapping[str, float], kept: Sequence[Mapping[str, Any]] = (),
                         ) -> str:
    """Returns a sentence on the share of the multiplications that is quantized.

    Args:
        shares: ``multiplications`` of ``results.json``; empty of older runs.
        kept: Rows of ``kept_float``: those with the most multiplications are named.
    """
    if not shares:
        return ''
    text = f'{percent(shares["quantized"])} of the multiplications quantized'
    if shares['products']:
        text += f' (layers {percent(shares["layers"])}, products of activations ' \
                f'{percent(shares["products"])})'
    if shares['one_float']:
        text += f', in {percent(shares["one_float"])} one factor is float'
    rows = sorted((row for row in kept if row.get('multiplications')),
                  key=lambda row: -row['multiplications'])
    named = [f'{row["name"]} {percent(row["multiplications"])}' for row in rows[:MOST_NAMED]]
    if named:
        more = f' and {len(rows) - len(named)} more' if len(rows) > len(named) else ''
        text += f'; float: {", ".join(named)}{more}'
    if shares.get('uncounted'):
        text += f'; float and not counted: {shares["uncounted"]} calls that could not be opened ' \
                '(kept_float in layers.json)'
    return text


def percent(share: float) -> str:
    """Writes a part of one."""
    return f'{100 * share:.2f} %'
