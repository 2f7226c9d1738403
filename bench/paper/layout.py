"""Summary rows as Markdown and CSV, the paper's numbers in columns of their own."""

import csv
import io
from collections.abc import Sequence

from bench.paper.grids import TABLES, PaperTable
from bench.paper.methods import method_row
from bench.paper.summary import HEADINGS, SummaryRow, headlines_of, method_order, metrics_of
from bench.paper.verdicts import verdicts
from mmbitsplit.report.tables import text_table

CSV_COLUMNS = ('table', 'model', 'scope', 'weight_bits', 'activation_bits', 'method', 'metric',
               'float', 'mean', 'std', 'runs', 'paper_float', 'paper', 'calibration_seconds')


def pivot_table(rows: Sequence[SummaryRow], metric: str | None = None) -> str:
    """Returns a table of one metric: a row a width, a column a method, the float column once.

    Args:
        rows: Of one table of the paper; several models make several groups of rows.
        metric: Top-1 or box AP, whichever there is, when not given.

    Raises:
        ValueError: There are no rows.
    """
    _check_any(rows)
    metric = metric or headlines_of(rows)[0]
    columns = list(dict.fromkeys(row.label for row in rows))
    papers = list(dict.fromkeys(row.label for row in rows if metric in row.paper))
    lines: dict[tuple, dict[str, SummaryRow]] = {}
    for row in rows:
        bits = TABLES[row.table].bits_label(row.bits)
        lines.setdefault((row.model_label, row.scope, bits), {})[row.label] = row
    scoped = any(row.scope != 'all' for row in rows)
    header = ['Model', *(['Quantized part'] if scoped else []), 'Bits', 'Float', *columns,
              *(['Paper: float'] if papers else []), *(f'Paper: {label}' for label in papers)]
    return text_table(header, [
        [model, *([scope] if scoped else []), bits, _float(found.values(), metric),
         *(_cell(found.get(label), metric) for label in columns),
         *([_paper_float(found.values(), metric)] if papers else []),
         *(_number(found[label].paper.get(metric)) if label in found else '-'
           for label in papers)]
        for (model, scope, bits), found in lines.items()])


def method_table(rows: Sequence[SummaryRow], metric: str | None = None) -> str:
    """Returns a table of one metric: a row a method, a column a model and width.

    Args:
        rows: Of one table of the paper; a column names what its rows differ in.
        metric: When not given, top-1 or box AP, whichever the model of a column has.
    """
    _check_any(rows)
    several = len({row.model for row in rows}) > 1
    columns: dict[str, dict[str, SummaryRow]] = {}
    for row in rows:
        parts = [row.model_label] if several else []
        parts += [TABLES[row.table].bits_label(row.bits)]
        parts += [row.scope] if row.scope != 'all' else []
        columns.setdefault(' '.join(parts), {})[row.label] = row
    metrics = [metric or headlines_of([*found.values()])[0] for found in columns.values()]
    lines = [['float', *(_float(found.values(), name)
                         for found, name in zip(columns.values(), metrics))]]
    for label in dict.fromkeys(row.label for row in sorted(
            rows, key=lambda row: method_order(row.method))):
        lines.append([label, *(_cell(found.get(label), name)
                               for found, name in zip(columns.values(), metrics))])
    return text_table(['Method', *columns], lines)


def full_table(rows: Sequence[SummaryRow], seconds: bool = True) -> str:
    """Returns all metrics of one model: the float row once, then a row a method and width.

    Args:
        rows: Of one model.
        seconds: With a column of calibration times: of use where the runs had the machine alone.
    """
    metrics = metrics_of(rows)
    papers = [metric for metric in metrics if any(metric in row.paper for row in rows)]
    header = ['Bits', 'Quantized part', 'Method', 'Runs', *(_heading(name) for name in metrics),
              *(f'Paper: {_heading(name)}' for name in papers), *(['Seconds'] if seconds else [])]
    first = next((row for row in rows if row.float_figures), None)
    lines = []
    if first is not None:
        lines.append(['float', '-', '-', '-',
                      *(_number(first.float_figures.get(name)) for name in metrics),
                      *(_number(first.paper_float.get(name)) for name in papers),
                      *(['-'] if seconds else [])])
    for row in rows:
        count = max((figure.count for figure in row.figures.values()), default=0)
        lines.append([row.bits.label, row.scope, row.label, str(count),
                      *(_cell(row, name) for name in metrics),
                      *(_number(row.paper.get(name)) for name in papers),
                      *([_seconds(row)] if seconds else [])])
    return text_table(header, lines)


def paper_page(table: PaperTable, rows: Sequence[SummaryRow], left: int = 0) -> str:
    """Returns the Markdown page of a table: a section a model, checks, failures, set-up.

    Args:
        table: Which table of the paper.
        rows: All its rows.
        left: Number of cells that have not run.
    """
    parts = [f'# Table {table.number}: {table.title}',
             'Per cent top-1 or AP in points; mean ± sample standard deviation over the seeds. '
             '"Paper" columns are the numbers of Wang et al., ICML 2020, for the same model and '
             'data; their float weights are others.']
    if left:
        parts.append(f'Interrupted: {left} of the cells have not run yet.')
    for label in dict.fromkeys(row.model_label for row in rows):
        own = [row for row in rows if row.model_label == label]
        parts.append(f'## {label}')
        parts += [f'{_heading(metric)}:\n\n{pivot_table(own, metric)}'
                  for metric in headlines_of(own)]
        parts.append(f'All figures:\n\n{full_table(own)}')
    checks = [f'- {verdict}' for verdict in verdicts(rows)]
    failures = failure_lines(rows)
    for title, lines in (('Checks', checks), ('Failed', failures), ('Set-up', _set_up(rows))):
        if lines:
            parts += [f'## {title}', '\n'.join(lines)]
    return '\n\n'.join(parts) + '\n'


def _set_up(rows: Sequence[SummaryRow]) -> list[str]:
    """What each method stands for, in the config's words."""
    names = dict.fromkeys(row.method for row in rows)
    return [f'- {method_row(name).title} (`{name}`): method `{dict(method_row(name).method)}`, '
            f'activation `{dict(method_row(name).activation)}`'
            + (f', weight `{dict(method_row(name).weight)}`' if method_row(name).weight else '')
            for name in names]


def shortened(message: str, most: int = 240) -> str:
    """The beginning of a message that may be very long."""
    return message if len(message) <= most else message[:most - 1] + '…'


def failure_lines(rows: Sequence[SummaryRow]) -> list[str]:
    """Returns one line a failed run."""
    return [f'- {row.model_label} {row.label} {row.bits.label} ({row.scope}): {shortened(error)}'
            for row in rows for error in row.errors]


def csv_text(rows: Sequence[SummaryRow]) -> str:
    """Returns CSV with a line a row and metric, unrounded, in per cent or points."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        for metric, figure in row.figures.items():
            writer.writerow([
                row.table, row.model, row.scope, row.bits.weight, row.bits.activation or 32,
                row.method, metric, row.float_figures[metric], figure.mean,
                '' if figure.std is None else figure.std, figure.count,
                row.paper_float.get(metric, ''), row.paper.get(metric, ''), row.seconds])
    return stream.getvalue()


def _seconds(row: SummaryRow) -> str:
    return '-' if row.seconds is None else f'{row.seconds:.0f}'


def _check_any(rows: Sequence[SummaryRow]) -> None:
    if not rows:
        raise ValueError('there are no runs to make a table of; store some first.')


def _heading(metric: str) -> str:
    return HEADINGS.get(metric, metric)


def _cell(row: SummaryRow | None, metric: str) -> str:
    if row is None:
        return '-'
    if metric not in row.figures:
        return 'failed' if row.errors else '-'
    return str(row.figures[metric]) + (f' ({len(row.errors)} failed)' if row.errors else '')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def _float(rows, metric: str) -> str:
    return _number(next((row.float_figures[metric] for row in rows
                         if metric in row.float_figures), None))


def _paper_float(rows, metric: str) -> str:
    return _number(next((row.paper_float[metric] for row in rows
                         if metric in row.paper_float), None))
