"""Plotly figures of the layers as plain dicts; colours are names of the page's style ('@ours')."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_LAYERS_A_LABEL = 2.5  # parts of the network nearer than this are not both labelled
MOST_PIECES = 8  # that a part of the network is taken apart into


def layers_figure(layers: Sequence[Mapping[str, Any]],
                  others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Draws a bar a layer: output error of plain rounding behind that of the codes taken; bits.

    Args:
        layers: Rows of ``layers.json``, in execution order.
        others: Rows whose errors the axis holds, too, so that figures can be compared.
    """
    numbers = list(range(len(layers)))
    hover = [_hover(layer) for layer in layers]
    guard = [layer['guard_taken'] for layer in layers]
    text = dict(customdata=hover, hovertemplate='%{customdata}<extra></extra>')
    traces = [
        dict(type='bar', name='plain rounding', x=numbers, width=0.86, marker=dict(color='@plain'),
             y=[_on_log_axis(layer['error_rounding']) for layer in layers], **text),
        dict(type='bar', name='codes taken', x=numbers, width=0.52, y=[
            None if taken else _on_log_axis(layer['error'])
            for layer, taken in zip(layers, guard)], marker=dict(color='@ours'), **text),
    ]
    if any(guard):
        traces.append(dict(
            type='bar', name='plain rounding was better, taken', x=numbers, width=0.52, y=[
                _on_log_axis(layer['error']) if taken else None
                for layer, taken in zip(layers, guard)], marker=dict(color='@warn'), **text))
    traces += [
        dict(type='bar', name='weight bits', x=numbers, width=0.52, yaxis='y2',
             y=[layer['weight_bits'] for layer in layers], marker=dict(color='@weight'), **text),
        dict(type='scatter', name='input bits', x=numbers, mode='markers', yaxis='y2',
             y=[layer['activation_bits'] for layer in layers],
             marker=dict(color='@input', symbol='diamond', size=7), **text),
    ]
    bands, ticks = layer_parts([layer['name'] for layer in layers])
    layout = dict(
        barmode='overlay', hovermode='closest', legend=dict(orientation='h', y=1.02, x=0,
                                                            yanchor='bottom'),
        margin=dict(l=64, r=8, t=24, b=96), height=460,
        xaxis=dict(range=[-0.7, len(layers) - 0.3], tickvals=[place for place, _ in ticks],
                   ticktext=[name for _, name in ticks], tickangle=-40, showgrid=False,
                   zeroline=False, fixedrange=True, anchor='y2'),
        yaxis=dict(type='log', domain=[0.26, 1], title=dict(text='relative output error'),
                   range=_log_range([*layers, *others]), fixedrange=True, dtick=1,
                   exponentformat='power'),
        yaxis2=dict(domain=[0, 0.2], range=[0, 9], tickvals=[2, 4, 8], title=dict(text='bits'),
                    fixedrange=True),
        shapes=part_shapes(bands))
    return dict(data=traces, layout=layout, least_width=72 + 8 * len(layers))


def bits_text(layer: Mapping[str, Any]) -> str:
    """Returns the widths as in W4A8; a float input is A32."""
    return f"W{layer['weight_bits']}A{layer['activation_bits'] or 32}"


def parts_of(names: Sequence[str]) -> list[str]:
    """Names the part of the network that each layer belongs to, finer where it is large.

    Args:
        names: Dotted names of layers.
    """
    parts = [name.split('.')[0] for name in names]
    for depth in (2, 3):
        finer = ['.'.join(name.split('.')[:depth]) for name in names]
        for part in set(parts):
            inside = {fine for fine, own in zip(finer, parts) if own == part}
            # Blocks of a stage are too many to be named.
            if parts.count(part) <= len(names) / 3 or len(inside) > MOST_PIECES:
                finer = [own if own == part else fine for fine, own in zip(finer, parts)]
        parts = finer
    return parts


def part_shapes(runs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Draws a band behind every second part of the network; see ``layer_parts``."""
    return [dict(type='rect', xref='x', yref='paper', x0=first - 0.5, x1=last + 0.5, y0=0, y1=1,
                 fillcolor='@band', line=dict(width=0), layer='below') for first, last in runs[::2]]


def layer_parts(names: Sequence[str]) -> tuple[list[tuple[int, int]], list[tuple[float, str]]]:
    """Runs of layers of one part, first and last, and where their names stand on the axis."""
    parts = parts_of(names)
    starts = [index for index in range(len(parts)) if not index or parts[index] != parts[index - 1]]
    runs = [(first, last - 1) for first, last in zip(starts, [*starts[1:], len(parts)])]
    ticks: list[tuple[float, str]] = []
    # Large runs first: where two names are too near, that of the larger one stands.
    for first, last in sorted(runs, key=lambda run: run[0] - run[1]):
        place = (first + last) / 2
        if all(abs(place - other) >= LEAST_LAYERS_A_LABEL for other, _ in ticks):
            ticks.append((place, parts[first]))
    return runs, sorted(ticks)


def _hover(layer: Mapping[str, Any]) -> str:
    shape = '×'.join(str(size) for size in layer['shape'])
    guard = '<br>plain rounding was better and was taken' if layer['guard_taken'] else ''
    return (f"<b>{layer['name']}</b><br>{layer['kind']} {shape}, {bits_text(layer)}"
            f"<br>error {_short(layer['error'])}, plain rounding "
            f"{_short(layer['error_rounding'])}{guard}")


def _short(value: float | None) -> str:
    return '–' if value is None else f'{value:.3g}'


def _on_log_axis(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _log_range(layers: Sequence[Mapping[str, Any]]) -> list[float]:
    values = [value for layer in layers for value in (layer['error'], layer['error_rounding'])
              if _on_log_axis(value) is not None] or [1e-4, 1]
    # Half a decade below the least, so that its bar is seen.
    return [math.log10(min(values)) - 0.5, math.log10(max(values)) + 0.15]
