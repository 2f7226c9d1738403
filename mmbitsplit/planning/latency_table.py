"""How long each layer takes at some widths, as somebody measured it: a CSV."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmbitsplit.spelling import did_you_mean, nearest

COLUMNS = ('layer', 'weight_bits', 'activation_bits', 'microseconds')
FLOAT_BITS = 32
HOW = 'benchmarks/layer_latency.py writes such a table'


@dataclass(frozen=True)
class LatencyTable:
    """Times of layers, in microseconds.

    Args:
        path: Of the file, for errors.
        times: By layer, then by widths of weights and input; 32 is float.
    """

    path: str
    times: dict[str, dict[tuple[int, int], float]]

    def of(self, layer: str, weight_bits: int, activation_bits: int) -> float:
        """Returns the time of a layer, of the fastest entry that has at least these bits.

        A runtime computes codes of 3 bits with what it has for 4 or 8.

        Raises:
            ValueError: The table lacks the layer, or has it at narrower widths only.
        """
        if layer not in self.times:
            raise ValueError(f"{self.path} lacks layer '{layer}' of the model; "
                             f'{did_you_mean(layer, self.times) or "it has others"}. {HOW}.')
        fit = [time for (weight, activation), time in self.times[layer].items()
               if weight >= weight_bits and activation >= activation_bits]
        if not fit:
            known = ', '.join(f'{weight}/{activation}' for weight, activation in self.times[layer])
            raise ValueError(
                f"{self.path} has no time of layer '{layer}' with {weight_bits} bits of weights "
                f'and {activation_bits} of the input, or more ({FLOAT_BITS} is float); it has '
                f'{known}. Add a row. {HOW}.')
        return min(fit)


def read_latencies(path: str | Path) -> LatencyTable:
    """Reads a CSV with the columns ``COLUMNS``, a row a layer and pair of widths.

    Widths are 2 to 8, or 32 or ``float``. Layers that the model has not are not looked at, nor
    are other columns.

    Raises:
        ValueError: There is no such file, a column is missing or a value is no width or time;
            names the line, and what is allowed.
    """
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = 'there is no such file' if isinstance(error, FileNotFoundError) else error
        raise ValueError(f'The latency table {path} cannot be read: {reason}. {HOW}.') from error
    _check_columns(path, columns)
    times: dict[str, dict[tuple[int, int], float]] = {}
    for number, row in enumerate(rows, 2):
        where = f'{path}, line {number}'
        widths = (_bits(row, 'weight_bits', where), _bits(row, 'activation_bits', where))
        own = times.setdefault((row['layer'] or '').strip(), {})
        if widths in own:
            raise ValueError(f"{where}: layer '{row['layer']}' has a second row at these widths; "
                             'leave one.')
        own[widths] = _microseconds(row['microseconds'], where)
    return LatencyTable(str(path), times)


def latencies_text(rows: Iterable[tuple[str, int, int, float]]) -> str:
    """Returns the text of such a file.

    Args:
        rows: Layer, bits of weights and of the input, microseconds.
    """
    lines = [','.join(COLUMNS)]
    lines += [f'{layer},{weight},{activation},{time:.3f}'
              for layer, weight, activation, time in rows]
    return '\n'.join(lines) + '\n'


def _check_columns(path: str | Path, columns: Iterable[str]) -> None:
    columns = list(columns)
    for name in COLUMNS:
        if name not in columns:
            raise ValueError(f"The latency table {path} lacks the column '{name}' "
                             f'({nearest(name, columns) if columns else "it is empty"}); it needs '
                             f'{", ".join(COLUMNS)}. {HOW}.')


def _bits(row: dict[str, str | None], name: str, where: str) -> int:
    text = (row[name] or '').strip()
    if text == 'float':
        return FLOAT_BITS
    if text.isdecimal() and (2 <= int(text) <= 8 or int(text) in (16, FLOAT_BITS)):
        return int(text)
    raise ValueError(f'{where}: {name}={text!r} is no width; allowed are 2 to 8, 16, and '
                     f"{FLOAT_BITS} or 'float'.")


def _microseconds(text: str | None, where: str) -> float:
    try:
        value = float(text or '')
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f'{where}: microseconds={text!r} is no time; give a number from 0.')
    return value
