"""One self-contained HTML page: style, script, compressed data and plotly in a single file."""

import base64
import functools
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbitsplit.version import __version__

if TYPE_CHECKING:
    import jinja2

ASSETS = Path(__file__).parent / 'assets'
TEMPLATES = Path(__file__).parent / 'templates'
HOW_TO_INSTALL = "The report needs the package '{}': pip install 'mmbitsplit[report]'."
# What mail and chat programs still carry; plotly's compressed script takes two fifths of it.
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Table:
    """A table of a page, laid out by the macro ``table`` of ``parts.html``.

    Args:
        header: Titles of the columns.
        rows: Cells: text, or (text, value to sort by).
        numeric: Columns that stand to the right.
        paths: Columns of long names, beside the first, which may be broken anywhere.
        classes: Of the table.
        sortable: A click on a title sorts.
        layers: Of each row, the layer that a click on it shows.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: Sequence[int] = ()
    paths: Sequence[int] = ()
    classes: str = ''
    sortable: bool = False
    layers: Sequence[str] = ()

    def kind(self, column: int) -> str:
        """Returns the class of a column's cells."""
        return 'number' if column in self.numeric else 'name' if column == 0 else \
            'path' if column in self.paths else ''

    def cells(self, row: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Returns a row as pairs of text and value to sort by, ``None`` where that is the text."""
        return [cell if isinstance(cell, tuple) else (cell, None) for cell in row]


def build_page(template: str, title: str, figures: Mapping[str, Any],
               details: Mapping[str, Any] | None = None,
               several: Mapping[str, Any] | None = None, **values: Any) -> str:
    """Returns a page that needs no network.

    Args:
        template: File in ``templates/`` that extends ``base.html``; an element with
            ``data-figure="x"`` is where figure ``x`` is drawn.
        title: Of the window.
        figures: Plotly figures by name, colours as names of the style (``'@ours'``).
        details: What is shown of a layer that is chosen, by its name.
        several: Of a model of several widths, ``names`` and ``said`` of each; a figure of the name
            ``'x W4A4'`` is drawn for figure ``x`` where that width is chosen.
        values: What the template shows, escaped there.

    Raises:
        ImportError: plotly or Jinja2 is not installed.
    """
    from markupsafe import Markup  # comes with Jinja2

    style, script = (Markup((ASSETS / name).read_text(encoding='utf-8'))
                     for name in ('page.css', 'page.js'))
    return templates().get_template(template).render(
        title=title, style=style, script=script, plotly=_plotly(), version=__version__,
        data=pack(to_json({'figures': figures, 'layers': details or {}, **(
            {} if several is None else {'widths': {key: several[key] for key in ('names', 'said')}}
        )})), **values)


@functools.cache
def templates() -> 'jinja2.Environment':
    """Returns the pages' templates, which escape what they show and refuse unknown names.

    Raises:
        ImportError: Jinja2 is not installed.
    """
    try:
        import jinja2  # torch brings it
    except ImportError as error:
        raise ImportError(HOW_TO_INSTALL.format('jinja2')) from error
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True,
                              undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)


def pack(text: str) -> str:
    """Compresses text into letters that stand in a page as they are."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def unpack(packed: str) -> str:
    """Inverse of ``pack``."""
    return gzip.decompress(base64.b64decode(packed)).decode()


def to_json(value: Any) -> str:
    """Writes JSON that browsers read: no NaN, no infinity, four digits."""
    return json.dumps(_plain(value), separators=(',', ':'), allow_nan=False)


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
        raise ImportError(HOW_TO_INSTALL.format('plotly')) from error
    return pack(get_plotlyjs())
