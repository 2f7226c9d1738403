"""Pictures of results."""

from collections.abc import Sequence

import numpy as np


def comparison_figure(rows: Sequence[tuple[np.ndarray, np.ndarray]], titles: tuple[str, str],
                      labels: Sequence[str], path: str) -> None:
    """Draws pairs of images side by side, a pair a row, and saves a PNG.

    Args:
        rows: Pairs of (H, W, 3) uint8 RGB images.
        titles: Above the left and the right column.
        labels: Beside each row.
        path: Where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.55 * len(rows)), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for line, (pair, label) in enumerate(zip(rows, labels)):
        for column, image in enumerate(pair):
            axis = axes[line][column]
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            if line == 0:
                axis.set_title(titles[column])
        axes[line][0].set_ylabel(label)
    figure.savefig(path)
