"""The report of one run: a page made of ``results.json``, ``layers.json`` and the report's data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mmbitsplit.functional.packing import ONNX_BITS, onnx_bits, packed_bytes
from mmbitsplit.report.budget import budget_section
from mmbitsplit.report.drawing import BOTH, LOST, NEW
from mmbitsplit.report.layer_figures import bits_text, layers_figure
from mmbitsplit.report.multiplications import multiplications_text
from mmbitsplit.report.page import MOST_BYTES, Table, build_page
from mmbitsplit.report.products import products_table
from mmbitsplit.report.result_figures import CLASSES_SHOWN, classes_figure, sizes_figure
from mmbitsplit.report.tables import (
    RELATIVE_ERROR,
    bits_of,
    figure_of,
    headline_metrics,
    mean_bits_note,
    unit_of,
)
from mmbitsplit.report.widths import at_width, widths_section

# What the colours around detections say.
KEYS = ((BOTH, 'found by both'), (LOST, 'by the float model only'),
        (NEW, 'by the quantized one only'))
SIZE_SUFFIXES = (('all', ''), ('small', '_s'), ('medium', '_m'), ('large', '_l'))
WITHOUT_DATA = ('report_data.json is not there: the page has no input ranges, no histograms, no '
                'classes and no pictures. Quantize again to have them.')


def run_page(results: Mapping[str, Any], layers: Mapping[str, Any],
             data: Mapping[str, Any] | None, budget: Mapping[str, Any] | None = None) -> str:
    """Returns the page, at most ``MOST_BYTES``; pictures that do not fit are left out and counted.

    Args:
        results: ``results.json``.
        layers: ``layers.json``.
        data: ``report_data.json``; ``None`` where a run left none, which the page says.
        budget: ``budget.json``, of a run whose widths were chosen.

    Raises:
        ImportError: plotly is not installed.
    """
    data = dict(data) if data is not None else {'problems': [WITHOUT_DATA]}
    pictures = dict(data.get('pictures') or {})
    while True:
        page = _page(results, layers, {**data, 'pictures': pictures}, budget)
        excess = len(page.encode()) - MOST_BYTES
        if excess <= 0 or not pictures.get('items'):
            return page
        items = list(pictures['items'])
        while items and excess > 0:
            item = items.pop()
            excess -= sum(len(item.get(side, '')) for side in ('float', 'quantized', 'image'))
        pictures['items'] = items


def _page(results: Mapping[str, Any], layers: Mapping[str, Any], data: Mapping[str, Any],
          budget: Mapping[str, Any] | None) -> str:
    name, bits = PurePath(str(results['config'])).stem, bits_of(results)
    rows, headlines = layers['layers'], headline_metrics(results)
    sections = [_classes(results, kind, found)
                for kind, found in (data.get('classes') or {}).items()]
    widths = widths_section(results, rows)
    if widths is not None:
        bits = ', '.join(widths['names'])
    figures = _layer_figures(rows, widths)
    within = None if budget is None else budget_section(budget, rows)
    for section in [*sections, *([within] if within else [])]:
        figures |= section['figures']
    details = {row['name']: _details(row, (data.get('layers') or {}).get(row['name'], {}), widths)
               for row in rows}
    kept = layers.get('kept_float') or []
    return build_page(
        'run.html', f'{name}, {bits}', figures, details, name=name, bits=bits,
        config=str(results['config']), method=str(results['method']['type']),
        mean_bits=mean_bits_note([bits]), untrained=results.get('untrained'),
        relative_error=RELATIVE_ERROR,
        problems=[*(layers.get('warnings') or []), *(data.get('problems') or [])],
        headline=_metrics(results, [metric for metric in headlines if metric in results['float']],
                          'headline'),
        other_metrics=_metrics(results, [metric for metric in results['float']
                                         if metric not in headlines]),
        several=widths, widths=widths, tiles=_tiles(results), budget=within,
        layers=_layers(rows, widths), codes=_codes(rows),
        worst_layer=max(rows, key=lambda row: row['error'])['name'] if rows else None,
        classes=sections, pictures=data['pictures'] or {'kind': None}, keys=KEYS,
        kept_float=_kept_float(kept),
        kept_share=f"{100 * sum(row['share'] for row in kept):.2f} %",
        products=products_table(layers.get('products') or []),
        multiplications=multiplications_text(results.get('multiplications') or {}, kept),
        selections=_selections(layers.get('selections') or []),
        tuning=_tuning(results.get('tuning') or []), settings=_settings(results))


def _layer_figures(layers: Sequence[Mapping[str, Any]], widths: Mapping[str, Any] | None,
                   ) -> dict[str, Any]:
    """The figure of the layers, and one a width where there are several."""
    if not layers:
        return {}
    if widths is None:
        return {'layers': layers_figure(layers)}
    at_each = [[at_width(layer, row) for layer in layers] for row in widths['rows']]
    all_rows = [layer for rows in at_each for layer in rows]
    return {f'layers {name}': layers_figure(rows, all_rows)
            for name, rows in zip(widths['names'], at_each)}


def _tiles(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figures of the whole run, each with what it is."""
    sizes, seconds = results['size_bytes'], results['seconds']
    file = sizes.get('quantized_checkpoint')
    tiles = [(f"{sizes['float'] / 1e6:.2f} MB", "float model's tensors")]
    if file:
        tiles += [(f'{file / 1e6:.2f} MB', 'quantized file'),
                  (f"{sizes['float'] / file:.1f} times", 'smaller')]
    return [*tiles, (_duration(seconds['calibration']), 'calibration, solving included'),
            (_duration(seconds['solve']), 'of it solving'),
            (f"{results['peak_rss_bytes'] / 1e9:.2f} GB", 'most memory held'),
            (str(len(results['calibration']['image_ids'])), 'calibration images')]


def _metrics(results: Mapping[str, Any], metrics: Sequence[str], classes: str = '') -> Table:
    units = {unit_of(metric) for metric in metrics}
    shared = units.pop() if len(units) == 1 else None  # stands in the title, once
    title = f'metric, {shared}' if shared else 'metric'
    rows = []
    for metric in metrics:
        unit = unit_of(metric) if shared is None else ''
        rows.append([f'{metric}, {unit}' if unit else metric, *_figures(results, metric)])
    return Table([title, 'float', 'quantized', 'drop'], rows, numeric=(1, 2, 3), classes=classes)


def _figures(results: Mapping[str, Any], metric: str) -> list[str]:
    values = [results[key].get(metric) for key in ('float', 'quantized', 'drop')]
    if '–' in (cells := [figure_of(metric, value) for value in values])[:2]:
        cells[2] = '–'
    return cells


def _layers(layers: Sequence[Mapping[str, Any]], widths: Mapping[str, Any] | None) -> Table:
    """A row a layer; of several widths with the error at each."""
    errors, rows = ['error', 'plain rounding'], []
    if widths is not None:
        errors = [f'error, {name}' for name in widths['names']]
    for row in layers:
        found = (row['error'], row['error_rounding']) if widths is None else [
            at_width(row, asked)['error'] for asked in widths['rows']]
        bits = bits_text(row) if widths is None or not row.get('width_errors') else 'several'
        rows.append([row['name'], bits, *((f'{error:.2e}', error) for error in found),
                     row['role'], _remark(row)])
    return Table(['layer', 'bits', *errors, 'role', 'remark'], rows,
                 numeric=range(2, 2 + len(errors)), sortable=True,
                 layers=[row['name'] for row in layers])


def _codes(layers: Sequence[Mapping[str, Any]]) -> Table:
    """What codes take here and in ONNX files, a row a width.

    Of several widths what they take by themselves, a layer in each row; ONNX files then hold what
    the codes stand for, which depends on how they nest.
    """
    rows, several = [], any(row.get('width_errors') for row in layers)
    widths = {row['name']: {row['weight_bits'], *(
        one['weight_bits'] for one in row.get('width_errors') or ())} for row in layers}
    formats = () if several else ONNX_BITS
    for bits in sorted(set().union(*widths.values())):
        mine = [row for row in layers if bits in widths[row['name']]]
        packed = 0
        for row in mine:  # rows of codes end on a byte
            outputs = row['shape'][1 if row['kind'] == 'conv_transpose2d' else 0]
            packed += outputs * packed_bytes(math.prod(row['shape']) // outputs, bits)
        rows.append([f'{bits}', str(len(mine)), f"{sum(math.prod(row['shape']) for row in mine):,}",
                     f'{packed / 1e3:.1f} kB',
                     *(f'{onnx_bits(bits, format)}' for format in formats)])
    return Table(['weight bits', 'layers', 'weights',
                  'codes at this width' if several else 'codes in quantized.pth',
                  *(f'bits in ONNX, {format}' for format in formats)], rows,
                 numeric=range(4 + len(formats)))


def _remark(row: Mapping[str, Any]) -> str:
    return ', '.join((['plain rounding taken'] if row['guard_taken'] else []) + _notes(row))


def _notes(row: Mapping[str, Any]) -> list[str]:
    """Those of a layer, but for errors at widths, which stand in the table."""
    return [str(note) for note in row.get('notes') or ()
            if not (row.get('width_errors') and str(note).startswith('error at '))]


def _details(row: Mapping[str, Any], stored: Mapping[str, Any],
             widths: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the page shows of a layer that is chosen, at each width where there are several."""
    ranges = stored.get('ranges')
    note = '' if ranges else 'Its input was not looked at.' if stored else \
        'Its input ranges and codes were not kept.'
    if ranges and len(ranges['channel']) < ranges['num_channels']:
        note = (f"{len(ranges['channel'])} of {ranges['num_channels']} channels are drawn, at even "
                'steps from the widest to the narrowest.')
    found = {'facts': _facts(row), 'note': note, 'ranges': ranges,
             'histogram': stored.get('histogram')}
    if widths is None or not row.get('width_errors'):
        return found
    counts, rows = stored.get('histograms') or {}, [at_width(row, one) for one in widths['rows']]
    if ranges and len({one['activation_bits'] for one in row['width_errors']}) > 1:
        found['note'] = f'What the codes of its input hold is that of the widest. {note}'.strip()
    return {**found, 'widths': [
        {'facts': _facts(one), 'histogram': counts.get(str(one['weight_bits']),
                                                       found['histogram'])} for one in rows]}


def _facts(row: Mapping[str, Any]) -> str:
    """A layer in words."""
    shape = '×'.join(str(size) for size in row['shape'])
    facts = [f"{row['kind']} {shape}", bits_text(row)]
    if row['activation_mode'] is None:
        facts.append('float input')
    else:
        strength = '' if row['strength'] is None else f" of strength {row['strength']:g}"
        facts.append(f"input {row['activation_mode']}{strength}, {row['activation_symmetry']}")
    if row.get('output_bits'):
        facts.append(f"output in {row['output_bits']} bits")
    if row.get('unit') not in (None, row['name']):
        facts.append(f"in the unit {row['unit']}")
    error, before = ("relative error of its unit's outputs", 'before it was learned') \
        if row.get('of') == 'unit' else ('relative output error', 'plain rounding')
    facts += [f"{error} {row['error']:.3g} ({before} {row['error_rounding']:.3g})",
              f"{row['rows']} positions of {row['calls']} calls", f"{row['seconds']:.1f} s"]
    if row['guard_taken']:
        facts.append('plain rounding was better at held-out positions and was taken')
    return '; '.join(facts + _notes(row)) + '.'


def _classes(results: Mapping[str, Any], kind: str, rows: Sequence[Mapping[str, Any]],
             ) -> dict[str, Any]:
    """The section of one kind of figures by class: average precision, or accuracy.

    Args:
        kind: Such as ``'bbox'``, or ``'accuracy'``.
        rows: Of ``report_data.json``, a class each.
    """
    figures = {}
    unit = 'accuracy, %' if kind == 'accuracy' else f'{kind} AP, points of 100'
    sizes = [] if kind == 'accuracy' else _size_rows(results, kind)
    if sizes:
        figures[f'sizes-{kind}'] = sizes_figure(sizes, unit)
    known = [row for row in rows if None not in (row['float'], row['quantized'])]
    known.sort(key=lambda row: row['quantized'] - row['float'])
    figures[f'classes-{kind}'] = classes_figure(
        [(row['class'], 100 * row['float'], 100 * row['quantized']) for row in known], unit)
    shown = f'The {CLASSES_SHOWN} largest drops of {len(known)} classes. ' \
        if len(known) > CLASSES_SHOWN else ''
    missing = f'{len(rows) - len(known)} classes have nothing to be found. ' \
        if len(known) < len(rows) else ''
    return {'figures': figures, 'title': 'Accuracy by class' if kind == 'accuracy' else
            f'AP of {"masks" if kind == "segm" else "boxes"} by size and class',
            'sizes': f'sizes-{kind}' if sizes else None, 'figure': f'classes-{kind}',
            'note': shown + missing, 'table': _class_table(known)}


def _size_rows(results: Mapping[str, Any], kind: str) -> list[tuple[str, float, float]]:
    rows = []
    for size, suffix in SIZE_SUFFIXES:
        metric = f'coco/{kind}_mAP{suffix}'
        values = [results[model].get(metric, -1) for model in ('float', 'quantized')]
        if min(values) >= 0:  # COCO says -1 where there is no object of the size
            rows.append((size, *(100 * value for value in values)))
    return rows


def _class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    sizes = [size for size in ('small', 'medium', 'large')
             if any((row.get('sizes') or {}).get(size) for row in rows)]
    header = ['class', 'float', 'quantized', 'drop', *(f'{size}: drop' for size in sizes)]
    body = []
    for row in rows:
        before, after = 100 * row['float'], 100 * row['quantized']
        cells = [before, after, before - after]
        for size in sizes:
            pair = row['sizes'].get(size)
            cells.append(None if pair is None else 100 * (pair[0] - pair[1]))
        body.append([row['class'], *('–' if cell is None else f'{cell:.1f}' for cell in cells)])
    return Table(header, body, numeric=range(1, len(header)), sortable=True)


def _kept_float(kept: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[row['name'], row['kind'], row['reason'], f"{100 * row['share']:.2f} %",
             '–' if row.get('multiplications') is None
             else f"{100 * row['multiplications']:.2f} %"] for row in kept]
    return Table(['part', 'kind', 'why', 'weights', 'multiplications'], rows, numeric=(3, 4))


def _selections(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[f"{row['operation']} in {row['module'] + '.' if row['module'] else ''}"
             f"{row['method']}", ', '.join(row['reaches'])] for row in found]
    return Table(['step', 'layers that get what it picks'], rows)


def _tuning(stages: Sequence[Mapping[str, Any]]) -> Table:
    """What stages gained that changed the whole model, a row each."""
    rows = []
    for stage in stages:
        if 'left_out' in stage:
            rows.append([str(stage['type']), f"left out: {stage['left_out']}", '', '', '', ''])
            continue
        of = f"{stage['steps']} {'layers' if 'layers' in stage else 'steps'}"
        if stage['kept'] == 'start':
            taken = f'the start, no better one in {of}'
        else:
            taken = f"{stage['best_step']} of {of}" if 'layers' in stage \
                else f"step {stage['best_step']} of {stage['steps']}"
        rows.append([
            str(stage['type']), taken, *(
                f'{stage[f"{part}_before"]:.4g} to {stage[f"{part}_after"]:.4g}'
                for part in ('held_out', 'fit')),
            ', '.join(f'{count} {kind.replace("_", " ")}'
                      for kind, count in stage['learned'].items() if count),
            f"{stage['seconds']:.1f} s"])
    return Table(['stage', 'taken', 'loss on held-out batches', 'on those learned from', 'learned',
                  'took'], rows)


def _settings(results: Mapping[str, Any]) -> Table:
    rows = [[f'method.{key}', str(value)] for key, value in results['method'].items()]
    rows += [[f'{key} (version)', str(value)] for key, value in results['versions'].items()]
    rows += [[f'seconds.{key}', f'{value:.2f}'] for key, value in results['seconds'].items()]
    rows.append(['calibration.seed', str(results['calibration']['seed'])])
    return Table(['what', 'value'], rows)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.1f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60} min'
