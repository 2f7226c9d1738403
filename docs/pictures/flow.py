"""The picture of how a config becomes a quantized checkpoint."""

from theme import Canvas, Theme

HEIGHT = 56
STEPS = [
    ('Runner', 'mmengine builds\nmodel and loaders,\nloads float weights', 'plain'),
    ('Look', 'one image: which\nlayers run, who reads\nwhose output', 'plain'),
    ('Prepare', 'fold batch norms,\nput quantized layers\nin place', 'plain'),
    ('Float pass', 'every batch once:\ntargets of each layer\nat sampled positions', 'float_pass'),
    ('Quantized pass', 'every batch once,\nall side by side,\nlayer after layer', 'quantized'),
]
SOLVE = [
    ('Input scales', 'ECAQ, strength chosen\non the output error'),
    ('Statistics', 'sums of products of\ninputs and targets'),
    ('Codes', 'warm start, bit-split,\nstitch, polish, bias'),
    ('Guard', 'plain rounding where it\nis better on held-out rows'),
]
RESULTS = [('Figures', 'results.json\nreport.html'), ('Layers', 'layers.json\nlayers.jsonl'),
           ('Checkpoint', 'quantized.pth\nquantized_config.py'),
           ('Export', 'model.onnx\nint8 or int4')]


def draw(theme: Theme) -> Canvas:
    """Returns the picture."""
    canvas = Canvas.make(HEIGHT, theme)
    left, width, gap = 1, 17.6, 2.5
    for number, (title, lines, fill) in enumerate(STEPS):
        x = left + number * (width + gap)
        canvas.box(x, 42, width, 12, title, lines, getattr(theme, fill))
        if number:
            canvas.arrow((x - gap + 0.2, 48), (x - 0.2, 48))
    last, first = left + 4 * (width + gap) + width / 2, 12.3
    _elbow(canvas, [(last, 41.6), (last, 37), (first, 37), (first, 34.4)])
    canvas.words(15, 39, 'at each layer, when all batches have arrived', ha='left', size=9.2,
                 color=theme.faint)
    _row(canvas, SOLVE, 23, 11, theme.solve)
    _elbow(canvas, [(87.7, 22.8), (87.7, 19.8), (first, 19.8), (first, 22.6)])
    canvas.words(50, 17.8, 'codes go into the layer, then the next one: it sees, and compensates, '
                 'the errors of earlier ones', size=9.2, color=theme.faint)
    canvas.words(1, 14, 'When all layers are solved:', ha='left', size=10, color=theme.faint)
    _row(canvas, RESULTS, 1.5, 10.5, theme.plain, arrows=False)
    return canvas


def _elbow(canvas: Canvas, points: list[tuple[float, float]]) -> None:
    """Draws a line through points that ends as an arrow."""
    canvas.axis.plot(*zip(*points[:-1]), color=canvas.theme.faint, linewidth=1.3)
    canvas.arrow(points[-2], points[-1])


def _row(canvas: Canvas, boxes, bottom: float, height: float, fill: str,
         arrows: bool = True) -> None:
    """Draws four boxes over the whole width."""
    width, gap = 22.6, 2.53
    for number, (title, lines) in enumerate(boxes):
        x = 1 + number * (width + gap)
        canvas.box(x, bottom, width, height, title, lines, fill)
        if number and arrows:
            canvas.arrow((x - gap + 0.2, bottom + height / 2), (x - 0.2, bottom + height / 2))
