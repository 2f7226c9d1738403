"""Draws the pictures of the documentation, each for light and for dark pages.

    python docs/pictures/draw_pictures.py
"""

from pathlib import Path

import flow
import lockstep
import matplotlib
from theme import THEMES

IMAGES = Path(__file__).resolve().parents[1] / 'images'
PICTURES = {'flow': flow.draw, 'lockstep': lockstep.draw}


def draw_all(folder: Path) -> list[Path]:
    """Writes every picture as SVG into a folder; the same text from the same matplotlib.

    Returns:
        The files.
    """
    paths = []
    with matplotlib.rc_context({'svg.hashsalt': 'mmbitsplit', 'svg.fonttype': 'path'}):
        for name, draw in PICTURES.items():
            for shade, theme in THEMES.items():
                path = folder / f'{name}_{shade}.svg'
                draw(theme).figure.savefig(path, transparent=True, metadata={'Date': None})
                paths.append(path)
    return paths


if __name__ == '__main__':
    for written in draw_all(IMAGES):
        print(written)
