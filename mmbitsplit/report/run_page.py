"""The report of one run: a page made of ``results.json``, ``layers.json`` and the report's data."""

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mmbitsplit.report.drawing import BOTH, LOST, NEW
from mmbitsplit.report.layer_figures import bits_text, layers_figure
from mmbitsplit.report.page import MOST_BYTES, build_page, plot, table
from mmbitsplit.report.result_figures import CLASSES_SHOWN, classes_figure, sizes_figure
from mmbitsplit.report.tables import (
    RELATIVE_ERROR,
    bits_of,
    figure_of,
    headline_metrics,
    unit_of,
)

SIZE_SUFFIXES = (('all', ''), ('small', '_s'), ('medium', '_m'), ('large', '_l'))
WITHOUT_DATA = ('report_data.json is not there: the page has no input ranges, no histograms, no '
                'classes and no pictures. Quantize again to have them.')


def run_page(results: Mapping[str, Any], layers: Mapping[str, Any],
             data: Mapping[str, Any] | None) -> str:
    """Returns the page, at most ``MOST_BYTES``; pictures that do not fit are left out and counted.

    Args:
        results: ``results.json``.
        layers: ``layers.json``.
        data: ``report_data.json``; ``None`` where a run left none, which the page says.

    Raises:
        ImportError: plotly is not installed.
    """
    data = dict(data) if data is not None else {'problems': [WITHOUT_DATA]}
    pictures = dict(data.get('pictures') or {})
    while True:
        page = _page(results, layers, {**data, 'pictures': pictures})
        excess = len(page.encode()) - MOST_BYTES
        if excess <= 0 or not pictures.get('items'):
            return page
        items = list(pictures['items'])
        while items and excess > 0:
            item = items.pop()
            excess -= sum(len(item.get(side, '')) for side in ('float', 'quantized', 'image'))
        pictures['items'] = items


def _page(results: Mapping[str, Any], layers: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    figures: dict[str, Any] = {}
    name = PurePath(str(results['config'])).stem
    problems = [*(layers.get('warnings') or []), *(data.get('problems') or [])]
    parts = [_heading(name, results), _problems(problems)]
    parts += [_headline(results), _other_metrics(results)]
    if layers['layers']:
        figures['layers'] = layers_figure(layers['layers'])
        parts.append(_layers(layers['layers']))
    parts += _classes(results, data.get('classes') or {}, figures)
    parts.append(_pictures(data['pictures']))
    parts += [_kept_float(layers), _selections(layers), _settings(results)]
    details = {row['name']: _details(row, (data.get('layers') or {}).get(row['name'], {}))
               for row in layers['layers']}
    return build_page(f'{name}, {bits_of(results)}', '\n'.join(filter(None, parts)), figures,
                      details)


def _heading(name: str, results: Mapping[str, Any]) -> str:
    untrained = ' Its weights are random: nothing about accuracy follows.' \
        if results.get('untrained') else ''
    return (f'<h1>{html.escape(name)}: {bits_of(results)}</h1><p class="quiet">'
            f'{html.escape(str(results["config"]))}, method '
            f'{html.escape(str(results["method"]["type"]))}.{untrained}</p>')


def _problems(problems: Sequence[str]) -> str:
    return ''.join(f'<p class="problem">{html.escape(problem)}</p>' for problem in problems)


def _headline(results: Mapping[str, Any]) -> str:
    metrics = [metric for metric in headline_metrics(results) if metric in results['float']]
    sizes, seconds = results['size_bytes'], results['seconds']
    file = sizes.get('quantized_checkpoint')
    tiles = [(f"{sizes['float'] / 1e6:.2f} MB", "float model's tensors")]
    if file:
        tiles += [(f'{file / 1e6:.2f} MB', 'quantized file'),
                  (f"{sizes['float'] / file:.1f} times", 'smaller')]
    tiles += [(_duration(seconds['calibration']), 'calibration, solving included'),
              (_duration(seconds['solve']), 'of it solving'),
              (f"{results['peak_rss_bytes'] / 1e9:.2f} GB", 'most memory held'),
              (str(len(results['calibration']['image_ids'])), 'calibration images')]
    return (_metric_table(results, metrics, 'headline') + '<div class="tiles">' + ''.join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>'
        for value, what in tiles) + '</div>')


def _other_metrics(results: Mapping[str, Any]) -> str:
    metrics = [metric for metric in results['float'] if metric not in headline_metrics(results)]
    if not metrics:
        return ''
    return (f'<details><summary>{len(metrics)} more metrics</summary>'
            + _metric_table(results, metrics) + '</details>')


def _metric_table(results: Mapping[str, Any], metrics: Sequence[str], classes: str = '') -> str:
    units = {unit_of(metric) for metric in metrics}
    shared = units.pop() if len(units) == 1 else None  # stands in the title, once
    title = f'metric, {shared}' if shared else 'metric'
    rows = []
    for metric in metrics:
        unit = unit_of(metric) if shared is None else ''
        rows.append([f'{metric}, {unit}' if unit else metric, *_figures(results, metric)])
    return table([title, 'float', 'quantized', 'drop'], rows, numeric=(1, 2, 3), classes=classes)


def _figures(results: Mapping[str, Any], metric: str) -> list[str]:
    values = [results[key].get(metric) for key in ('float', 'quantized', 'drop')]
    if '–' in (cells := [figure_of(metric, value) for value in values])[:2]:
        cells[2] = '–'
    return cells


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    worst = max(layers, key=lambda row: row['error'])['name']
    options = ''.join(f'<option{" selected" if row["name"] == worst else ""}>'
                      f'{html.escape(row["name"])}</option>' for row in layers)
    rows = [[row['name'], bits_text(row), *((f'{row[error]:.2e}', row[error])
                                            for error in ('error', 'error_rounding')),
             row['role'], _remark(row)] for row in layers]
    return (
        '<h2>Layers</h2><p class="quiet">How far each layer\'s output in the quantized model is '
        'from that in the float model, at positions held out from solving: wide bars with weights '
        f'rounded to nearest, narrow bars with the codes taken. {RELATIVE_ERROR} Below, the bits '
        'of weights and inputs; then the layer of the largest error. A click or a tap on a bar '
        'shows its layer.</p>'
        + plot('layers') + '<div class="controls" id="layer"><button id="layer-before" '
        'aria-label="the layer before">‹</button>'
        f'<select id="layer-choice" aria-label="layer">{options}</select>'
        '<button id="layer-after" aria-label="the next layer">›</button></div>'
        '<p class="small" id="layer-facts"></p>'
        '<div class="halves"><div><h3>Its input, channel by channel</h3>'
        '<div id="layer-ranges"></div></div><div><h3>Its weight codes</h3>'
        '<div id="layer-codes"></div></div></div><p class="quiet small" id="layer-note"></p>'
        f'<details><summary>All {len(layers)} layers as a table</summary><div class="tall">'
        + table(['layer', 'bits', 'error', 'plain rounding', 'role', 'remark'], rows,
                numeric=(2, 3), sortable=True, layers=[row['name'] for row in layers])
        + '</div></details>')


def _remark(row: Mapping[str, Any]) -> str:
    return ', '.join((['plain rounding taken'] if row['guard_taken'] else [])
                     + [str(note) for note in row.get('notes') or []])


def _details(row: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a layer that is chosen."""
    shape = '×'.join(str(size) for size in row['shape'])
    facts = [f"{row['kind']} {shape}", bits_text(row)]
    if row['activation_mode'] is None:
        facts.append('float input')
    else:
        strength = '' if row['strength'] is None else f" of strength {row['strength']:g}"
        facts.append(f"input {row['activation_mode']}{strength}, {row['activation_symmetry']}")
    if row.get('output_bits'):
        facts.append(f"output in {row['output_bits']} bits")
    facts += [f"relative output error {row['error']:.3g} "
              f"(plain rounding {row['error_rounding']:.3g})",
              f"{row['rows']} positions of {row['calls']} calls", f"{row['seconds']:.1f} s"]
    if row['guard_taken']:
        facts.append('plain rounding was better at held-out positions and was taken')
    facts += [str(note) for note in row.get('notes') or []]
    ranges = stored.get('ranges')
    note = '' if ranges else 'Its input was not looked at.' if stored else \
        'Its input ranges and codes were not kept.'
    if ranges and len(ranges['channel']) < ranges['num_channels']:
        note = (f"{len(ranges['channel'])} of {ranges['num_channels']} channels are drawn, at even "
                'steps from the widest to the narrowest.')
    return {'facts': '; '.join(facts) + '.', 'note': note, 'ranges': ranges,
            'histogram': stored.get('histogram')}


def _classes(results: Mapping[str, Any], classes: Mapping[str, Any],
             figures: dict[str, Any]) -> list[str]:
    """Sections of average precision by size and class, or of accuracy by class."""
    parts = []
    for kind, rows in classes.items():
        unit = 'accuracy, %' if kind == 'accuracy' else f'{kind} AP, points of 100'
        sizes = [] if kind == 'accuracy' else _size_rows(results, kind)
        title = 'Accuracy by class' if kind == 'accuracy' else \
            f'AP of {"masks" if kind == "segm" else "boxes"} by size and class'
        parts.append(f'<h2>{title}</h2>')
        if sizes:
            figures[f'sizes-{kind}'] = sizes_figure(sizes, unit)
            parts.append('<div class="halves"><div>' + plot(f'sizes-{kind}') + '</div><div>')
        known = [row for row in rows if None not in (row['float'], row['quantized'])]
        known.sort(key=lambda row: row['quantized'] - row['float'])
        figures[f'classes-{kind}'] = classes_figure(
            [(row['class'], 100 * row['float'], 100 * row['quantized']) for row in known], unit)
        parts.append(plot(f'classes-{kind}') + ('</div></div>' if sizes else ''))
        parts.append(_class_table(known, len(rows)))
    return parts


def _size_rows(results: Mapping[str, Any], kind: str) -> list[tuple[str, float, float]]:
    rows = []
    for size, suffix in SIZE_SUFFIXES:
        metric = f'coco/{kind}_mAP{suffix}'
        values = [results[model].get(metric, -1) for model in ('float', 'quantized')]
        if min(values) >= 0:  # COCO says -1 where there is no object of the size
            rows.append((size, *(100 * value for value in values)))
    return rows


def _class_table(rows: Sequence[Mapping[str, Any]], total: int) -> str:
    shown = f'The {CLASSES_SHOWN} largest drops of {len(rows)} classes. ' \
        if len(rows) > CLASSES_SHOWN else ''
    missing = f'{total - len(rows)} classes have nothing to be found. ' if len(rows) < total else ''
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
    return (f'<p class="quiet small">{shown}{missing}</p><details><summary>All {len(rows)} classes '
            'as a table</summary><div class="tall">'
            + table(header, body, numeric=range(1, len(header)), sortable=True)
            + '</div></details>')


def _pictures(pictures: Mapping[str, Any]) -> str:
    if not pictures.get('kind'):
        return ''
    items, detection = pictures['items'], pictures['kind'] == 'detection'
    watched = 'all' if pictures['watched'] == pictures['total'] else \
        f"the first {pictures['watched']} of"
    text = f"The most changed of {watched} {pictures['total']} evaluated images, the most first."
    if not items:
        text = f"On {watched} {pictures['total']} evaluated images both models say the same, or " \
            'no image that changed could be drawn.'
    elif detection:
        text += (f" Detections of a score of {pictures['least_score']:g} and more; a click "
                 'enlarges. Change: the scores of those that one '
                 'model alone finds, and a little for each that moved.</p><p class="small">'
                 f'<span class="key" style="border-color:{BOTH}"></span>found by both'
                 f'<span class="key" style="border-color:{LOST}"></span>by the float model only'
                 f'<span class="key" style="border-color:{NEW}"></span>by the quantized one only')
    cards = ''.join(_pair(item) if detection else _card(item) for item in items)
    return (f'<h2>Images that changed most</h2><p class="quiet">{text}</p>'
            f'<div class="{"pairs" if detection else "cards"}">{cards}</div>')


def _pair(item: Mapping[str, Any]) -> str:
    sides = ''.join(
        f'<div><span>{side}: {item["counts"][side]}</span><img loading="lazy" src="{item[side]}" '
        f'alt="{html.escape(item["name"])}, {side}"></div>' for side in ('float', 'quantized'))
    return (f'<figure><figcaption>{html.escape(item["name"])}: {item["lost"]} only in float, '
            f'{item["new"]} only in quantized, change {item["change"]:.2f}</figcaption>'
            f'<div class="pair">{sides}</div></figure>')


def _card(item: Mapping[str, Any]) -> str:
    lines = []
    for side in ('float', 'quantized'):
        answer, right = item['answers'][side], item['right'][side]
        kind = '' if right is None else ' class="good"' if right else ' class="bad"'
        lines.append(f'{side}: <b{kind}>{html.escape(answer)}</b>')
    truth = '' if item['truth'] is None else f'<br>truth: {html.escape(item["truth"])}'
    return (f'<figure><img loading="lazy" src="{item["image"]}" alt="{html.escape(item["name"])}">'
            f'<figcaption>{"<br>".join(lines)}{truth}<br>{html.escape(item["name"])}'
            '</figcaption></figure>')


def _kept_float(layers: Mapping[str, Any]) -> str:
    kept = layers.get('kept_float') or []
    if not kept:
        return ''
    rows = [[row['name'], row['kind'], row['reason'], f"{100 * row['share']:.2f} %"]
            for row in kept]
    share = 100 * sum(row['share'] for row in kept)
    return (f'<h2>What stays float</h2><p class="quiet">{share:.2f} % of the weights.</p>'
            + table(['part', 'kind', 'why', 'weights'], rows, numeric=(3,)))


def _selections(layers: Mapping[str, Any]) -> str:
    found = layers.get('selections') or []
    if not found:
        return ''
    rows = [[f"{row['operation']} in {row['module'] + '.' if row['module'] else ''}"
             f"{row['method']}", ', '.join(row['reaches'])] for row in found]
    return ('<h2>Steps that pick by values of layers</h2><p class="quiet">The quantized model may '
            'pick otherwise than the float model, and the layers after such a step are then fitted '
            'to outputs of other things. A replay point for the method avoids that.</p>'
            + table(['step', 'layers that get what it picks'], rows))


def _settings(results: Mapping[str, Any]) -> str:
    rows = [[f'method.{key}', str(value)] for key, value in results['method'].items()]
    rows += [[f'{key} (version)', str(value)] for key, value in results['versions'].items()]
    rows += [[f'seconds.{key}', f'{value:.2f}'] for key, value in results['seconds'].items()]
    rows.append(['calibration.seed', str(results['calibration']['seed'])])
    return ('<h2>Settings and times</h2><details><summary>Method, versions, seconds</summary>'
            + table(['what', 'value'], rows) + '</details>')


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.1f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60} min'
