"""Draws points over two axes as an SVG file, for pages of the documentation."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 34, 48
COLOURS = {'program': '#4c72b0', 'genetic': '#2a9d5c', 'uniform': '#d55e00'}
TITLES = {'program': 'integer program', 'genetic': 'evolutionary search', 'uniform': 'uniform'}
Point = tuple[float, float, str]


def picture(points: Mapping[str, Sequence[Point]], x_label: str, y_label: str, *,
            behind: Sequence[tuple[float, float]] = (), logarithmic: bool = False) -> str:
    """Returns the text of an SVG file.

    Args:
        points: By kind (a key of ``TITLES``): x, y and what stands beside each.
        x_label, y_label: Of the axes.
        behind: Points without a name, drawn small.
        logarithmic: Of the y axis; values that are not positive are left out there.
    """
    flat = [(x, y) for row in points.values() for x, y, _ in row] + list(behind)
    flat = [(x, y) for x, y in flat if not logarithmic or y > 0]

    def height(value: float) -> float:
        return math.log10(value) if logarithmic else value

    x_low, x_high = _range([x for x, _ in flat])
    y_low, y_high = _range([height(y) for _, y in flat])

    def place(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (height(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>']
    for step in range(5):
        x, y = (low + (high - low) * step / 4 for low, high in ((x_low, x_high), (y_low, y_high)))
        value = 10 ** y if logarithmic else y
        left, bottom = place(x, value)
        parts += [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom:.1f}" y2="{bottom:.1f}" '
                  'stroke="#e3e3e3"/>',
                  f'<text x="{LEFT - 6}" y="{bottom + 4:.1f}" text-anchor="end">{value:.3g}</text>',
                  f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                  f'{x:.3g}</text>']
    for x, y in behind:
        if not logarithmic or y > 0:
            left, bottom = place(x, y)
            parts.append(f'<circle cx="{left:.1f}" cy="{bottom:.1f}" r="1.5" fill="#b5b5b5"/>')
    for number, (kind, row) in enumerate(points.items()):
        row = sorted((x, y, name) for x, y, name in row if not logarithmic or y > 0)
        line = ' '.join('{:.1f},{:.1f}'.format(*place(x, y)) for x, y, _ in row)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[kind]}"/>')
        for x, y, name in row:
            left, bottom = place(x, y)
            parts += [f'<circle cx="{left:.1f}" cy="{bottom:.1f}" r="4" fill="{COLOURS[kind]}"/>']
            if kind == 'uniform':
                parts.append(f'<text x="{left + 6:.1f}" y="{bottom + 14:.1f}" font-size="10">'
                             f'{escape(name)}</text>')
        parts.append(f'<text x="{LEFT + 150 * number}" y="20" fill="{COLOURS[kind]}">'
                     f'&#9679; {TITLES[kind]}</text>')
    parts += [f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
              f'{escape(x_label)}</text>',
              f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
              f'text-anchor="middle">{escape(y_label)}</text>', '</svg>']
    return '\n'.join(parts) + '\n'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With some room; never empty."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
