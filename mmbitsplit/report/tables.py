"""Result tables as text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbitsplit.report.layer_figures import bits_text

# The figures a user looks for first, in this order; others stand in results.json.
HEADLINES = ('coco/bbox_mAP', 'coco/segm_mAP', 'accuracy/top1')

# For pages that readers open without others.
RELATIVE_ERROR = (
    "Relative output error: the squared difference to the float output, divided by how much that "
    "output varies around each channel's mean. 0 is exact; 0.01 is a deviation of a tenth of the "
    'usual swing; 1 is as bad as a constant.')

MEAN_BITS = ('Bits that differ from layer to layer are told as their mean, each layer counted by '
             'its weights, with their range.')


def headline_metrics(results: Mapping[str, Any]) -> list[str]:
    """Names the metrics of one ``results.json`` that a user looks for first; at least one."""
    return [name for name in HEADLINES if name in results['float']] \
        or sorted(results['float'])[:1] or ['-']


def in_points(metric: str, value: float) -> float:
    """Returns a metric in points: COCO's figures are parts of 1, top-1 is per cent already."""
    return 100.0 * value if metric.startswith('coco/') else value


def figure_of(metric: str, value: float | None) -> str:
    """Returns a metric in points as text; a dash where there is none (COCO says -1 then)."""
    if value is None or (metric.startswith('coco/') and value == -1):
        return '–'
    return f'{in_points(metric, value):.2f}'


def unit_of(metric: str) -> str:
    """Returns what a metric in points is counted in; empty for one that is not known."""
    if metric.startswith('coco/'):
        return 'points of 100'
    return '%' if metric.startswith(('accuracy/', 'single-label/')) else ''


def bits_of(results: Mapping[str, Any]) -> str:
    """Returns the widths of one ``results.json`` as in W4A8; float inputs are A32.

    W4A8 are those of inner layers, where every layer has what the request gives to its role. Other
    widths are told as mean and range over all layers, as in W4.3 (2-8) A8: see ``MEAN_BITS``.
    """
    bits = results.get('bits')
    if bits is None or bits['uniform']:  # runs of before plans say the request only
        return f"W{results['weight_bits']}A{results['activation_bits'] or 32}"
    weight, activation = (_widths(bits[what]) for what in ('weight', 'activation'))
    return f'W{weight}{" " if ")" in weight else ""}A{activation}'


def _widths(found: Mapping[str, float] | None) -> str:
    if found is None:
        return '32'
    if found['min'] == found['max']:
        return str(found['min'])
    return f"{found['mean']:.1f} ({found['min']}-{found['max']})"


def mean_bits_note(bits: Iterable[str]) -> str:
    """Returns what readers of some ``bits_of`` must know where one of them holds a mean."""
    return MEAN_BITS if any('(' in text for text in bits) else ''


def config_of(results: Mapping[str, Any]) -> str:
    """Returns the config's name of one ``results.json``; says where its weights are random."""
    return f"{results['config']}{' (random weights)' if results.get('untrained') else ''}"


def results_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns table rows of one ``results.json``: one a headline metric.

    Columns: config, bits, metric, float, quantized, drop, float MB, file MB, seconds.
    """
    sizes, seconds = results['size_bytes'], results['seconds']
    rows = []
    for name in headline_metrics(results):
        values = [results[key].get(name) for key in ('float', 'quantized', 'drop')]
        rows.append([config_of(results), bits_of(results), name,
                     *('-' if value is None else f'{in_points(name, value):.2f}'
                       for value in values),
                     f"{sizes['float'] / 1e6:.2f}", f"{sizes['quantized_checkpoint'] / 1e6:.2f}",
                     f"{seconds['calibration']:.0f}"])
    return rows


def results_text(all_results: Sequence[Mapping[str, Any]]) -> str:
    """Returns one text table of several ``results.json``.

    Metrics are in points, sizes in MB (10^6 bytes) of the float tensors and of the quantized
    file, seconds those of the calibration.
    """
    header = ['config', 'bits', 'metric', 'float', 'quantized', 'drop', 'float MB',
              'quantized MB', 'seconds']
    rows = [row for results in all_results for row in results_rows(results)]
    note = mean_bits_note(row[1] for row in rows)
    return text_table(header, rows) + (f'\n\n{note}' if note else '')


def widths_text(results: Mapping[str, Any]) -> str:
    """Returns a text table of one ``results.json`` of several widths, a row a width and metric.

    Where they were not evaluated, how to; empty for a model of one width.
    """
    if 'quantized_widths' not in results['size_bytes']:
        return ''
    if 'widths' not in results:
        return ('The model has several widths, the figures are those of the widest; '
                '--resume --evaluate-widths evaluates the others.')
    rows = [[bits_text(row), metric, *(
        figure_of(metric, found.get(metric)).replace('–', '-')
        for found in (results['float'], row['quantized'], row['drop']))]
        for row in results['widths'] for metric in headline_metrics(results)]
    return text_table(['widths', 'metric', 'float', 'quantized', 'drop'], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table in Markdown's form, numbers to the right."""
    widths = [max(len(line[column]) for line in (header, *rows))
              for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return '| ' + ' | '.join(cell.rjust(width) if number else cell.ljust(width)
                                 for cell, width, number in zip(cells, widths, numeric)) + ' |'

    rule = '|' + '|'.join('-' * (width + 1) + (':' if number else '-')
                          for width, number in zip(widths, numeric)) + '|'
    return '\n'.join([line(header), rule, *map(line, rows)])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == '-'
    return True
