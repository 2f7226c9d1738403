"""Accuracy over bits, a line a method."""

from collections.abc import Sequence

from bench.paper.grids import TABLES
from bench.paper.summary import HEADINGS, SummaryRow, headlines_of

MARKERS = 'osD^vP*Xd<>'


def bits_figure(rows: Sequence[SummaryRow], path: str) -> None:
    """Draws every model and headline metric of one table and saves a PNG.

    Args:
        rows: Of one table of the paper, with figures.
        path: Where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure as Canvas

    panels: dict[tuple, list[SummaryRow]] = {}
    for row in rows:
        if row.figures:
            for metric in headlines_of([row]):
                panels.setdefault((row.model_label, row.scope, metric), []).append(row)
    if not panels:
        raise ValueError('no run has finished, so there is nothing to draw.')
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Canvas(figsize=(6.4 * columns, 4.4 * lines), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False)
    styles = _styles(rows)
    for place, (key, found) in enumerate(panels.items()):
        _draw(axes[place // columns][place % columns], key, found, styles)
    for place in range(len(panels), lines * columns):
        axes[place // columns][place % columns].set_visible(False)
    number = rows[0].table
    figure.suptitle(f'Table {number}: {TABLES[number].title}')
    figure.savefig(path)


def _styles(rows: Sequence[SummaryRow]) -> dict[str, tuple[str, str]]:
    """One colour and marker a method in all panels."""
    labels = list(dict.fromkeys(row.label for row in rows))
    return {label: (f'C{number % 10}', MARKERS[number % len(MARKERS)])
            for number, label in enumerate(labels)}


def _draw(axis, key: tuple, rows: Sequence[SummaryRow], styles: dict) -> None:
    model, scope, metric = key
    table = TABLES[rows[0].table]
    ticks = list(dict.fromkeys(table.bits_label(row.bits) for row in rows))
    for label in dict.fromkeys(row.label for row in rows):
        colour, marker = styles[label]
        own = [row for row in rows if row.label == label]
        places = [ticks.index(table.bits_label(row.bits)) for row in own]
        noise = [row.figures[metric].std or 0.0 for row in own]
        axis.errorbar(places, [row.figures[metric].mean for row in own],
                      yerr=noise if any(noise) else None, label=label, color=colour,
                      marker=marker, capsize=3)
        paper = [(place, row.paper[metric]) for place, row in zip(places, own)
                 if metric in row.paper]
        if paper:
            axis.plot(*zip(*paper), label=f'Paper: {label}', color=colour, marker=marker,
                      linestyle=':', markerfacecolor='none')
    axis.axhline(rows[0].float_figures[metric], color='black', linestyle='--', linewidth=1,
                 label='Float')
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set_title(model if scope == 'all' else f'{model}, {scope}')
    axis.set_xlabel('bits')
    axis.set_ylabel(HEADINGS.get(metric, metric))
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
