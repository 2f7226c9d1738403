"""What each layer costs when it alone is quantized: table and heat maps."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.report.page import Table, build_page
from mmbitsplit.report.result_figures import heat_map
from mmbitsplit.report.tables import RELATIVE_ERROR, headline_metrics, in_points, text_table


def sensitivity_columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Lists what was quantized, weights first, the fewest bits first."""
    found = {(row['what'], row['num_bits']) for row in rows}
    return sorted(found, key=lambda column: (column[0] != 'weight', column[1]))


def sensitivity_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line a trial, figures unrounded; metrics in columns of their own.

    Args:
        rows: Dicts of ``layer``, ``what``, ``num_bits``, ``error`` and ``metrics``.
    """
    metrics = list(dict.fromkeys(name for row in rows for name in row['metrics']))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(['layer', 'what', 'num_bits', 'error', *metrics])
    for row in rows:
        writer.writerow([row['layer'], row['what'], row['num_bits'], row['error'],
                         *(row['metrics'].get(name) for name in metrics)])
    return buffer.getvalue()


def sensitivity_markdown(rows: Sequence[Mapping[str, Any]], float_metrics: Mapping[str, float],
                         ) -> str:
    """Returns a Markdown table: a row a layer, error and drop of the first metric a column."""
    header, cells, _ = _table(rows, float_metrics)
    return text_table(header, [[cell[0] if isinstance(cell, tuple) else cell for cell in row]
                               for row in cells])


def sensitivity_page(rows: Sequence[Mapping[str, Any]], float_metrics: Mapping[str, float],
                     title: str) -> str:
    """Returns a page of heat maps: a row a layer, a column what was quantized.

    Args:
        rows: See ``sensitivity_csv``.
        float_metrics: Of the float model on the same images; empty when nothing was evaluated.
        title: Of the page.

    Raises:
        ImportError: plotly is not installed.
    """
    layers, columns, by_place = _grid(rows)
    names = [_column(*column) for column in columns]
    figures = {'error': heat_map(layers, names, [[
        by_place.get((layer, *column), {}).get('error') for column in columns]
        for layer in layers], 'relative error of the outputs', logarithmic=True)}
    metric = _metric(float_metrics)
    if metric is not None:
        figures['metric'] = heat_map(layers, names, [[
            _drop(metric, float_metrics, by_place.get((layer, *column)))
            for column in columns] for layer in layers], f'drop of {metric}, points',
            logarithmic=False)
    header, cells, numeric = _table(rows, float_metrics)
    return build_page(
        'sensitivity.html', title, figures, num_layers=len(layers), metric=metric,
        float_figure=None if metric is None else f'{in_points(metric, float_metrics[metric]):.2f}',
        table=Table(header, cells, numeric=numeric, sortable=True), relative_error=RELATIVE_ERROR)


def _table(rows: Sequence[Mapping[str, Any]], float_metrics: Mapping[str, float],
           ) -> tuple[list[str], list[list[Any]], range]:
    layers, columns, by_place = _grid(rows)
    metric = _metric(float_metrics)
    header = ['layer', *(f'{_column(*column)} error' for column in columns)]
    if metric is not None:
        header += [f'{_column(*column)} drop' for column in columns]
    cells = []
    for layer in layers:
        found = [by_place.get((layer, *column)) for column in columns]
        line: list[Any] = [layer, *('-' if row is None else (f"{row['error']:.2e}", row['error'])
                                    for row in found)]
        if metric is not None:
            drops = [_drop(metric, float_metrics, row) for row in found]
            line += ['-' if drop is None else (f'{drop:.2f}', drop) for drop in drops]
        cells.append(line)
    return header, cells, range(1, len(header))


def _grid(rows: Sequence[Mapping[str, Any]],
          ) -> tuple[list[str], list[tuple[str, int]], dict[tuple, Mapping[str, Any]]]:
    layers = list(dict.fromkeys(row['layer'] for row in rows))
    return layers, sensitivity_columns(rows), {
        (row['layer'], row['what'], row['num_bits']): row for row in rows}


def _column(what: str, num_bits: int) -> str:
    return f'{"W" if what == "weight" else "A"}{num_bits}'


def _metric(float_metrics: Mapping[str, float]) -> str | None:
    return headline_metrics({'float': float_metrics})[0] if float_metrics else None


def _drop(metric: str, float_metrics: Mapping[str, float], row: Mapping[str, Any] | None,
          ) -> float | None:
    if row is None or row['metrics'].get(metric) is None:
        return None
    return in_points(metric, float_metrics[metric] - row['metrics'][metric])
