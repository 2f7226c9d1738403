"""Colours, boxes and arrows that the pictures of the documentation share."""

from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text


@dataclass(frozen=True)
class Theme:
    """Colours on a light or a dark page; the background is the page's own.

    Args:
        text, faint: Of words, and of words and lines of less weight.
        plain, float_pass, quantized, solve: Fills of boxes.
    """

    text: str
    faint: str
    plain: str
    float_pass: str
    quantized: str
    solve: str


THEMES = {
    'light': Theme('#1b1f24', '#68707a', '#eceff3', '#cfe3ff', '#cdeed6', '#ffdca8'),
    'dark': Theme('#e8eaed', '#9aa3ad', '#2f353d', '#1f4673', '#1f5533', '#7a4e0c'),
}


@dataclass
class Canvas:
    """A figure whose unit is a hundredth of its width.

    Args:
        figure: With one axis over all of it.
        theme: Its colours.
    """

    figure: Figure
    theme: Theme
    size: float = 11.0

    @classmethod
    def make(cls, height: float, theme: Theme) -> 'Canvas':
        """Returns an empty canvas, 100 wide and ``height`` high."""
        figure = Figure(figsize=(8.2, 8.2 * height / 100))
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_xlim(0, 100)
        axis.set_ylim(0, height)
        axis.axis('off')
        return cls(figure, theme)

    @property
    def axis(self):
        """What is drawn on."""
        return self.figure.axes[0]

    def box(self, left: float, bottom: float, width: float, height: float, title: str,
            lines: str = '', fill: str | None = None) -> tuple[FancyBboxPatch, list[Text]]:
        """Draws a rounded box with a bold title and lines below it."""
        patch = FancyBboxPatch((left, bottom), width, height, linewidth=0,
                               boxstyle='round,pad=0,rounding_size=1',
                               facecolor=fill or self.theme.plain)
        self.axis.add_patch(patch)
        middle, rows = left + width / 2, lines.count('\n') + 1 if lines else 0
        step = 2.1
        top = bottom + height / 2 + rows * step / 2
        texts = [self.words(middle, top, title, weight='bold')]
        for number, line in enumerate(lines.split('\n') if lines else []):
            texts.append(self.words(middle, top - step * (number + 1), line, size=9.2))
        return patch, texts

    def words(self, x: float, y: float, text: str, **changes) -> Text:
        """Writes centred words."""
        style = {'ha': 'center', 'va': 'center', 'color': self.theme.text,
                 'fontsize': changes.pop('size', self.size), 'family': 'DejaVu Sans', **changes}
        return self.axis.text(x, y, text, **style)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], **changes) -> None:
        """Draws an arrow."""
        style = {'arrowstyle': '-|>', 'mutation_scale': 12, 'linewidth': 1.3,
                 'color': self.theme.faint, 'shrinkA': 0, 'shrinkB': 0, **changes}
        self.axis.add_patch(FancyArrowPatch(start, end, **style))
