"""Shows a run in the visualizer of its config, and so in every ``vis_backends`` that it names.

mmengine's backends take scalars and pictures. A layer is a step, so that each column of the table
of layers is a curve over the network. Names of pictures end in ``.png`` and differ, all of them:
MLflow takes them for names of files and knows no steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.visualization import Visualizer

from mmbitsplit.engine.results.artifacts import LAYERS, RESULTS
from mmbitsplit.engine.results.report_files import REPORT_DATA, read_file
from mmbitsplit.report.layer_pictures import (
    captioned,
    classes_picture,
    layers_pictures,
    side_by_side,
)

PREFIX = 'quantization'
COLUMNS = ('weight_bits', 'activation_bits', 'error', 'error_rounding')  # of the table of layers


def show_run(visualizer: Visualizer, work_dir: Path) -> bool:
    """Shows figures, layers, classes and pictures of a finished run; never raises.

    Args:
        visualizer: Of the run's Runner. Its backends are closed, as mmengine does after training.
        work_dir: Where the run left its files.

    Returns:
        Whether all of it was shown.
    """
    try:
        show_figures(visualizer, read_file(work_dir, RESULTS))
        show_layers(visualizer, read_file(work_dir, LAYERS)['layers'])
        if (work_dir / REPORT_DATA).is_file():
            _show_comparison(visualizer, read_file(work_dir, REPORT_DATA))
        visualizer.close()
    except Exception as error:  # noqa: BLE001  servers fail in ways of their own; the run is done
        print_log(f'mmbitsplit: the visualizer could not show everything ({error}); all files are '
                  f'in {work_dir}', logger='current', level=30)
        return False
    return True


def show_figures(visualizer: Visualizer, results: Mapping[str, Any]) -> None:
    """Adds metrics, drops, sizes and seconds as scalars; metrics at several widths as curves.

    Args:
        visualizer: Where to.
        results: ``results.json``.
    """
    scalars = {f'{PREFIX}/{group}/{name}': float(value)
               for group in ('float', 'quantized', 'drop', 'size_bytes', 'seconds')
               for name, value in results[group].items() if isinstance(value, (int, float))}
    visualizer.add_scalars(scalars)
    for row in results.get('widths', ()):
        visualizer.add_scalars({f'{PREFIX}/widths/{name}': float(value)
                                for name, value in row['quantized'].items()},
                               step=row['weight_bits'])


def show_layers(visualizer: Visualizer, layers: Sequence[Mapping[str, Any]]) -> None:
    """Adds bits and errors of every layer as scalars, its place being the step, and as pictures.

    Args:
        visualizer: Where to.
        layers: Rows of ``layers.json``.
    """
    if not visualizer._vis_backends:
        return
    for step, row in enumerate(layers):
        scalars = {f'{PREFIX}/layers/{name}': float(row[name]) for name in COLUMNS
                   if row.get(name) is not None}
        visualizer.add_scalars(scalars, step=step)
    for number, picture in enumerate(layers_pictures(layers)):
        visualizer.add_image(f'{PREFIX}_layers_{number:02d}.png', picture)


def _show_comparison(visualizer: Visualizer, data: Mapping[str, Any]) -> None:
    """Adds what ``report_data.json`` says of classes, and of the images that changed most."""
    if not visualizer._vis_backends:
        return
    for kind, rows in (data.get('classes') or {}).items():
        title = 'accuracy, %' if kind == 'accuracy' else f'{kind} AP, points of 100'
        picture = classes_picture(rows, title)
        if picture is not None:
            visualizer.add_image(f'{PREFIX}_classes_{kind}.png', picture)
    for number, item in enumerate((data.get('pictures') or {}).get('items') or []):
        sides = [item[side] for side in ('float', 'quantized', 'image') if side in item]
        visualizer.add_image(f'{PREFIX}_most_changed_{number:02d}.png',
                             captioned(side_by_side(sides), caption_of(item)))


def caption_of(item: Mapping[str, Any]) -> list[str]:
    """Says in lines what is seen of an image that changed, an item of ``report_data.json``."""
    if 'answers' not in item:
        return [item['name'], *(f'{place}: {side}, {item["counts"][side]} detections'
                                for place, side in (('left', 'float'), ('right', 'quantized')))]
    truth = [] if item['truth'] is None else [f'truth: {item["truth"]}']
    return [item['name'], *(f'{side}: {answer}' for side, answer in item['answers'].items()),
            *truth]
