"""Figures of a run as arrays of pixels, for logs that take pictures and no pages."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmbitsplit.report.layer_figures import bits_text

LAYERS_A_PICTURE = 40
CLASSES_A_PICTURE = 40
GAP = 8  # pixels between two pictures side by side
MARKERS = 'osDv^<>'  # of errors at narrower widths


def layers_pictures(layers: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Draws the table of layers: name, bits, and output errors as bars.

    Args:
        layers: Rows of ``layers.json``.

    Returns:
        Pictures of (H, W, 3) uint8, RGB, each of at most ``LAYERS_A_PICTURE`` layers.
    """
    return [_layers_picture(layers[start:start + LAYERS_A_PICTURE])
            for start in range(0, len(layers), LAYERS_A_PICTURE)]


def classes_picture(rows: Sequence[Mapping[str, Any]], title: str) -> np.ndarray | None:
    """Draws what each class loses, the largest drops first; ``None`` where no class has figures.

    Args:
        rows: ``class``, ``float`` and ``quantized``, parts of one.
        title: What the figures are.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    known = [row for row in rows if None not in (row['float'], row['quantized'])]
    known.sort(key=lambda row: row['quantized'] - row['float'])
    known = known[:CLASSES_A_PICTURE]
    if not known:
        return None
    figure, axes = _axes(len(known))
    places = np.arange(len(known))
    for offset, side, colour in ((-0.2, 'float', '#a0a0a0'), (0.2, 'quantized', '#1f77b4')):
        axes.barh(places + offset, [100 * row[side] for row in known], 0.38, color=colour,
                  label=side)
    axes.set_yticks(places, [str(row['class']) for row in known])
    return _finish(figure, axes, title)


def side_by_side(pictures: Sequence[str]) -> np.ndarray:
    """Puts pictures of ``report_data.json`` next to each other, at the top.

    Args:
        pictures: Data URIs.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    from PIL import Image

    images = [Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))).convert('RGB')
              for uri in pictures]
    whole = Image.new('RGB', (sum(image.width + GAP for image in images) - GAP,
                              max(image.height for image in images)), 'white')
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + GAP
    return np.asarray(whole)


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Writes lines below a picture, which gets as wide as they are.

    Args:
        picture: (H, W, 3) uint8, RGB.
        lines: Of text.

    Returns:
        (H', W', 3) uint8, RGB; the picture at the top left.
    """
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    text = '\n'.join(lines)
    right, bottom = (math.ceil(side) for side in draw.multiline_textbbox((0, 0), text)[2:])
    height, width = picture.shape[:2]
    whole = Image.new('RGB', (max(width, right + GAP), height + bottom + GAP), 'white')
    whole.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(whole).multiline_text((GAP // 2, height + GAP // 2), text, fill='black')
    return np.asarray(whole)


def _layers_picture(layers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    figure, axes = _axes(len(layers))
    places = np.arange(len(layers))
    for height, key, colour, label in ((0.8, 'error_rounding', '#d0d0d0', 'plain rounding'),
                                       (0.4, 'error', '#1f77b4', 'codes taken')):
        axes.barh(places, [_drawable(row[key]) for row in layers], height, color=colour,
                  label=label)
    for number, bits in enumerate(sorted({one['weight_bits'] for row in layers
                                          for one in _narrower(row)})):
        axes.plot([next((_drawable(one['error']) for one in _narrower(row)
                         if one['weight_bits'] == bits), math.nan) for row in layers], places,
                  MARKERS[number % len(MARKERS)], color='#d55e00', markersize=4,
                  label=f'at {bits} bits')
    axes.set_xscale('log', nonpositive='clip')
    axes.xaxis.set_minor_formatter('')  # figures between powers of ten stand on each other
    low, high = axes.get_xlim()
    axes.set_xlim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    axes.set_yticks(places, [f'{row["name"]}  {bits_text(row)}' for row in layers])
    return _finish(figure, axes, 'relative output error')


def _narrower(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Errors of a layer at its narrower widths, where they are its own and not its unit's."""
    return [one for one in layer.get('width_errors') or () if one['of'] == 'layer'
            and one['weight_bits'] < layer['weight_bits']]


def _axes(rows: int) -> tuple[Any, Any]:
    """Axes for horizontal bars, without pyplot: no window and no state of the process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.1 + 0.24 * rows), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylim(rows - 0.4, -0.6)  # the first on top
    axes.tick_params(labelsize=8)
    axes.grid(axis='x', alpha=0.3)
    return figure, axes


def _finish(figure: Any, axes: Any, title: str) -> np.ndarray:
    axes.set_xlabel(title)
    figure.legend(loc='outside upper center', ncols=8, fontsize=8)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _drawable(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) and value > 0 else math.nan
