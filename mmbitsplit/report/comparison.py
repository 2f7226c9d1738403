"""Several runs in one table: rows for people, for spreadsheets, and a page."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.report.layer_figures import bits_text
from mmbitsplit.report.page import Table, build_page
from mmbitsplit.report.result_figures import runs_figure
from mmbitsplit.report.tables import (
    RELATIVE_ERROR,
    bits_of,
    config_of,
    headline_metrics,
    in_points,
    mean_bits_note,
    text_table,
)

COLUMNS = {
    'run': 'run', 'bits': 'bits', 'metric': 'metric', 'float': 'float', 'quantized': 'quantized',
    'drop': 'drop', 'float_mb': 'float MB', 'quantized_mb': 'quantized MB', 'seconds': 'seconds',
    'method': 'method', 'config': 'config', 'worst_error': 'worst error',
    'worst_layer': 'worst layer',
}
PATHS = ('config', 'worst_layer')
NUMERIC = ('float', 'quantized', 'drop', 'float_mb', 'quantized_mb', 'seconds', 'worst_error')


def comparison_rows(name: str, results: Mapping[str, Any],
                    layers: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Returns the rows of one run: one a headline metric, by the names in ``COLUMNS``.

    Args:
        name: What the run is called.
        results: ``results.json``.
        layers: ``layers.json``, for the layer of the largest relative output error.
    """
    sizes = results['size_bytes']
    worst = max((layers or {}).get('layers') or [], default=None,
                key=lambda row: -1.0 if row['error'] is None else row['error'])
    rows = []
    for metric in headline_metrics(results):
        values = {key: results[key].get(metric) for key in ('float', 'quantized', 'drop')}
        rows.append({
            'run': name, 'config': config_of(results),
            'method': str(results['method']['type']), 'bits': bits_of(results), 'metric': metric,
            **{key: None if value is None else in_points(metric, value)
               for key, value in values.items()},
            'float_mb': sizes['float'] / 1e6, 'quantized_mb': sizes['quantized_checkpoint'] / 1e6,
            'seconds': results['seconds']['calibration'],
            'worst_error': None if worst is None else worst['error'],
            'worst_layer': None if worst is None else worst['name']})
    return rows


def differing_widths(runs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
                     ) -> list[list[str]]:
    """Returns a row a layer whose widths differ from run to run: its name, its bits in each run.

    Nothing where each run gives one width to all inner layers: the table of runs says those.
    Layers that only one run has are left out: it is of another model.

    Args:
        runs: ``results.json`` and ``layers.json`` by name of the run.
    """
    if all((results.get('bits') or {}).get('uniform', True) for results, _ in runs.values()):
        return []
    bits = [{**{row['name']: 'float' for row in layers.get('kept_float') or []},
             **{row['name']: bits_text(row) for row in layers['layers']}}
            for _, layers in runs.values()]
    names = dict.fromkeys(row['name'] for _, layers in runs.values() for row in layers['layers'])
    rows = [[name, *(of_run.get(name, '-') for of_run in bits)] for name in names
            if sum(name in of_run for of_run in bits) > 1]
    return [row for row in rows if len(set(row[1:]) - {'-'}) > 1]


def comparison_markdown(rows: Sequence[Mapping[str, Any]],
                        widths: Sequence[Sequence[str]] = ()) -> str:
    """Returns the rows as a Markdown table, and layers whose widths differ as another.

    Args:
        rows: Of ``comparison_rows``.
        widths: Of ``differing_widths``.
    """
    parts = [text_table(list(COLUMNS.values()), [
        [_cell(name, row[name]) for name in COLUMNS] for row in rows])]
    parts += filter(None, [mean_bits_note(row['bits'] for row in rows)])
    if widths:
        parts.append(text_table(_widths_header(rows), widths))
    return '\n\n'.join(parts)


def _widths_header(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ['layer', *dict.fromkeys(row['run'] for row in rows)]


def comparison_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as comma-separated values, figures unrounded."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(COLUMNS), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def comparison_page(rows: Sequence[Mapping[str, Any]],
                    widths: Sequence[Sequence[str]] = ()) -> str:
    """Returns the rows as a page with a figure, and layers whose widths differ as a table.

    Args:
        rows: Of ``comparison_rows``.
        widths: Of ``differing_widths``.

    Raises:
        ImportError: plotly is not installed.
    """
    numeric = [place for place, name in enumerate(COLUMNS) if name in NUMERIC]
    paths = [place for place, name in enumerate(COLUMNS) if name in PATHS]
    cells = [[(_cell(name, row[name]), row[name]) if name in NUMERIC and row[name] is not None
              else _cell(name, row[name]) for name in COLUMNS] for row in rows]
    runs = len({row['run'] for row in rows})
    table = Table(list(COLUMNS.values()), cells, numeric=numeric, paths=paths, sortable=True)
    title = ', '.join(dict.fromkeys(row['run'] for row in rows))
    return build_page('comparison.html', title[:80], {'runs': runs_figure(rows)}, runs=runs,
                      table=table, widths=Table(_widths_header(rows), widths),
                      relative_error=RELATIVE_ERROR,
                      mean_bits=mean_bits_note(row['bits'] for row in rows))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return '-'
    if name == 'seconds':
        return f'{value:.0f}'
    if name == 'worst_error':
        return f'{value:.2e}'
    return f'{value:.2f}' if name in NUMERIC else str(value)
