"""Plotly figures of results as plain dicts: classes, sizes, runs, sensitivity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROW = 22  # pixels of a bar with its name
CLASSES_SHOWN = 25
ROOM = 0.25  # of an axis, for a figure beside a bar on a narrow screen


def classes_figure(rows: Sequence[tuple[str, float, float]], unit: str) -> dict[str, Any]:
    """Draws each class's figures of both models, joined by a line; the largest losers on top.

    Args:
        rows: (class, float, quantized), the first ``CLASSES_SHOWN`` of the largest drops.
        unit: What the figures are, for the axis.
    """
    shown = list(rows)[:CLASSES_SHOWN]
    names = [name for name, _, _ in shown]
    # A line a class, broken between them: one trace, whatever the number of classes.
    lines_x = [value for _, left, right in shown for value in (left, right, None)]
    lines_y = [place for name in names for place in (name, name, None)]
    text = [f'<b>{name}</b><br>float {left:.1f}, quantized {right:.1f}, drop {left - right:.1f}'
            for name, left, right in shown]
    hover = dict(customdata=text, hovertemplate='%{customdata}<extra></extra>')
    return dict(
        data=[dict(type='scatter', mode='lines', x=lines_x, y=lines_y, showlegend=False,
                   hoverinfo='skip', line=dict(color='@muted', width=3)),
              dict(type='scatter', mode='markers', name='float', x=[r[1] for r in shown], y=names,
                   marker=dict(color='@plain', size=11), **hover),
              dict(type='scatter', mode='markers', name='quantized', x=[r[2] for r in shown],
                   y=names, marker=dict(color='@ours', size=11, symbol='diamond'), **hover)],
        layout=dict(height=110 + ROW * len(shown), margin=dict(l=8, r=16, t=36, b=44),
                    hovermode='closest', legend=dict(orientation='h', x=0, y=1, yanchor='bottom'),
                    xaxis=dict(title=dict(text=unit), fixedrange=True),
                    yaxis=dict(type='category', autorange='reversed', automargin=True,
                               fixedrange=True)),
        long_names=[dict(axis='yaxis', names=names, end=False)])


def sizes_figure(rows: Sequence[tuple[str, float, float]], unit: str) -> dict[str, Any]:
    """Draws both models' figures side by side, such as by the size of the object.

    Args:
        rows: (what, float, quantized).
        unit: What the figures are, for the axis.
    """
    names = [name for name, _, _ in rows]
    bars = [dict(type='bar', name=title, x=names, y=[row[place] for row in rows],
                 marker=dict(color=colour), texttemplate='%{y:.1f}', textposition='outside',
                 cliponaxis=False)
            for title, place, colour in (('float', 1, '@plain'), ('quantized', 2, '@ours'))]
    return dict(data=bars, layout=dict(
        barmode='group', height=300, margin=dict(l=48, r=8, t=36, b=32),
        legend=dict(orientation='h', x=0, y=1.05, yanchor='bottom'),
        xaxis=dict(type='category', fixedrange=True),
        yaxis=dict(title=dict(text=unit), fixedrange=True, rangemode='tozero')))


def runs_figure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Draws the drop of each run and metric, a colour a metric, above the size of each file.

    Args:
        rows: See ``comparison.comparison_rows``.
    """
    metrics = list(dict.fromkeys(row['metric'] for row in rows))
    runs = {row['run']: row for row in rows}
    several = {run for run in runs if sum(row['run'] == run for row in rows) > 1}
    names = [f"{row['run']} {row['metric'].rsplit('/', 1)[-1]}" if row['run'] in several
             else row['run'] for row in rows]
    traces = []
    for number, metric in enumerate(metrics):
        mine = [(name, row) for name, row in zip(names, rows) if row['metric'] == metric]
        traces.append(dict(
            type='bar', orientation='h', name=metric, y=[name for name, _ in mine],
            x=[row['drop'] for _, row in mine], marker=dict(color=f'@series{number % 6}'),
            texttemplate='%{x:.2f}', textposition='auto',
            hovertemplate='<b>%{y}</b><br>drop %{x:.2f}<extra></extra>'))
    traces.append(dict(
        type='bar', orientation='h', name='file', xaxis='x2', yaxis='y2', showlegend=False,
        y=list(runs), x=[row['quantized_mb'] for row in runs.values()],
        texttemplate='%{x:.2f}', marker=dict(color='@weight'),
        customdata=[row['float_mb'] for row in runs.values()],
        hovertemplate='<b>%{y}</b><br>%{x:.2f} MB, float %{customdata:.2f} MB<extra></extra>'))
    upper, lower, gap = ROW * len(names) + 20, ROW * len(runs) + 20, 80
    total = upper + lower + gap

    def axis(labels: Sequence[str]) -> dict[str, Any]:
        return dict(type='category', automargin=True, fixedrange=True, categoryorder='array',
                    categoryarray=list(labels)[::-1])

    return dict(data=traces, layout=dict(
        barmode='overlay', height=total + 120, margin=dict(l=8, r=16, t=64, b=48),
        legend=dict(orientation='h', x=0, y=1, yanchor='bottom'),
        xaxis=dict(title=dict(text='drop, points'), fixedrange=True, anchor='y',
                   range=_with_room([row['drop'] for row in rows])),
        yaxis=dict(domain=[1 - upper / total, 1], **axis(names)),
        xaxis2=dict(title=dict(text='quantized file, MB'), fixedrange=True, anchor='y2',
                    rangemode='tozero'),
        yaxis2=dict(domain=[0, lower / total], **axis(list(runs)))),
        long_names=[dict(axis='yaxis', names=names, end=True),
                    dict(axis='yaxis2', names=list(runs), end=True)])


def _with_room(values: Sequence[float | None]) -> list[float]:
    """An axis from the least to the largest value and 0, with room for figures beside bars."""
    known = [0.0, *(value for value in values if value is not None)]
    low, high = min(known), max(known)
    room = ROOM * ((high - low) or 1.0)
    return [low - room if low < 0 else 0.0, high + room]


def heat_map(layers: Sequence[str], columns: Sequence[str],
             values: Sequence[Sequence[float | None]], unit: str, *, logarithmic: bool,
             digits: int = 2) -> dict[str, Any]:
    """Draws a field a layer and column.

    Args:
        layers: Names, the first one on top.
        columns: Names.
        values: A row a layer; ``None`` leaves a field empty.
        unit: What the values are.
        logarithmic: Colours by the logarithm; values that are not positive have no colour then.
        digits: After the point, or those that count where ``logarithmic``.
    """
    shown = [[_colour_value(value, logarithmic) for value in row] for row in values]
    form = f'.{digits}g' if logarithmic else f'.{digits}f'
    text = [['' if value is None else format(value, form) for value in row] for row in values]
    known = [value for row in shown for value in row if value is not None] or [0.0]
    bar = dict(title=dict(text=unit, side='top'), orientation='h', x=0, xanchor='left', y=1,
               yanchor='bottom', len=1, thickness=12)
    trace = dict(type='heatmap', x=list(columns), y=list(range(len(layers))), z=shown, text=text,
                 customdata=[[name] * len(columns) for name in layers], xgap=1, ygap=1,
                 texttemplate='%{text}', textfont=dict(color='@text'), colorscale='@heat',
                 colorbar=bar, hoverongaps=False,
                 hovertemplate='<b>%{customdata}</b><br>%{x}: %{text}<extra></extra>')
    if logarithmic:
        low, high = math.floor(min(known)), math.ceil(max(known))
        step = max(1, (high - low) // 4)
        ticks = list(range(low, high + 1, step))
        bar.update(tickvals=ticks, ticktext=[f'10<sup>{tick}</sup>' for tick in ticks])
    else:
        most = max(max(map(abs, known)), 1e-9)
        trace.update(zmin=min(0.0, *known), zmax=most)
    return dict(data=[trace], long_names=[dict(axis='yaxis', names=list(layers), end=True)],
                layout=dict(
        height=130 + 20 * len(layers), margin=dict(l=8, r=8, t=84, b=32),
        xaxis=dict(type='category', side='bottom', fixedrange=True, showgrid=False),
        yaxis=dict(autorange='reversed', automargin=True, fixedrange=True, showgrid=False,
                   zeroline=False,
                   tickvals=list(range(len(layers))), ticktext=list(layers))))


def _colour_value(value: float | None, logarithmic: bool) -> float | None:
    if value is None or not math.isfinite(value) or (logarithmic and value <= 0):
        return None
    return math.log10(value) if logarithmic else value
