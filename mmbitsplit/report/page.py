"""One self-contained HTML page: style, script, compressed data and plotly in a single file."""

import base64
import functools
import gzip
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbitsplit.version import __version__

ASSETS = Path(__file__).parent / 'assets'
# What mail and chat programs still carry; plotly's compressed script takes two fifths of it.
MOST_BYTES = 5_000_000


def build_page(title: str, body: str, figures: Mapping[str, Any],
               layers: Mapping[str, Any] | None = None) -> str:
    """Returns a page that needs no network.

    Args:
        title: Of the window.
        body: HTML; an element with ``data-figure="x"`` is where figure ``x`` is drawn.
        figures: Plotly figures by name, colours as names of the style (``'@ours'``).
        layers: What is shown of a layer that is chosen, by name.

    Raises:
        ImportError: plotly is not installed.
    """
    data = {'figures': figures, 'layers': layers or {}}
    style, script = ((ASSETS / name).read_text(encoding='utf-8')
                     for name in ('page.css', 'page.js'))
    return '\n'.join([
        '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        # An empty icon: browsers would ask a server for one.
        '<link rel="icon" href="data:,">',
        f'<title>{html.escape(title)}</title>', f'<style>\n{style}</style>', '</head>', '<body>',
        body,
        f'<p class="quiet small">Written by mmbitsplit {__version__}.</p>',
        '<dialog id="zoom"></dialog>',
        f'<script type="text/plain" id="page-data">{pack(to_json(data))}</script>',
        f'<script type="text/plain" id="plotly">{_plotly()}</script>',
        f'<script>\n{script}</script>', '</body>', '</html>', ''])


def pack(text: str) -> str:
    """Compresses text into letters that stand in a page as they are."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def unpack(packed: str) -> str:
    """Inverse of ``pack``."""
    return gzip.decompress(base64.b64decode(packed)).decode()


def to_json(value: Any) -> str:
    """Writes JSON that browsers read: no NaN, no infinity, four digits."""
    return json.dumps(_plain(value), separators=(',', ':'), allow_nan=False)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = (),
          paths: Sequence[int] = (), classes: str = '', sortable: bool = False,
          layers: Sequence[str] = ()) -> str:
    """Lays out an HTML table.

    Args:
        header: Titles of the columns.
        rows: Cells: text, or (text, value to sort by), escaped here.
        numeric: Columns that stand to the right.
        paths: Columns of long names, beside the first, which may be broken anywhere.
        classes: Of the table.
        sortable: A click on a title sorts.
        layers: Of each row, the layer that a click on it shows.
    """
    def kind(column: int) -> str:
        return 'number' if column in numeric else 'name' if column == 0 else \
            'path' if column in paths else ''

    head = ''.join(f'<th class="{kind(number)}{" sortable" if sortable else ""}">'
                   f'{html.escape(title)}</th>' for number, title in enumerate(header))
    lines = []
    for number, row in enumerate(rows):
        link = f' class="link" data-layer="{html.escape(layers[number])}"' if layers else ''
        cells = (cell if isinstance(cell, tuple) else (cell, None) for cell in row)
        lines.append(f'<tr{link}>' + ''.join(
            f'<td class="{kind(column)}"'
            f'{"" if value is None else f" data-value={chr(34)}{value}{chr(34)}"}>'
            f'{html.escape(str(text))}</td>' for column, (text, value) in enumerate(cells))
            + '</tr>')
    return (f'<div class="wide"><table class="{classes}"><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def plot(name: str) -> str:
    """Returns the place where a figure is drawn."""
    return f'<div class="wide"><div class="plot" data-figure="{html.escape(name)}"></div></div>'


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f'{value:.4g}') if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


@functools.cache
def _plotly() -> str:
    """Plotly's script as the installed package ships it, compressed to a third."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("The report needs the package 'plotly': pip install "
                          "'mmbitsplit[report]'.") from error
    return pack(get_plotlyjs())
