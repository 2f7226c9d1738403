"""The picture of how a config becomes a quantized checkpoint."""

from theme import Canvas, Theme

HEIGHT = 56
STEPS = [
    ('Runner', 'mmengine builds model\nand loaders, loads\nthe float weights', 'plain'),
    ('Look', 'one image: which layers\nrun, who reads whose\noutput, first and last', 'plain'),
    ('Prepare', 'fold batch norms,\nput quantized layers\nin place', 'plain'),
    ('Float pass', 'every batch once:\ntargets of each layer\nat sampled positions', 'float_pass'),
    ('Quantized pass', 'every batch once,\nall side by side,\nlayer after layer', 'quantized'),
]
SOLVE = [
    ('Input scales', 'ECAQ, strength chosen\non the output error'),
    ('Statistics', 'sums of products of\nquantized inputs and targets'),
    ('Codes', 'warm start, bit-split,\nstitch, polish, bias'),
    ('Guard', 'plain rounding where it\nis better on held-out rows'),
]
RESULTS = [('evaluate', 'results.json, report.html'), ('layers', 'layers.json, layers.jsonl'),
           ('checkpoint', 'quantized.pth, quantized_config.py'),
           ('export', 'model.onnx: int8 or int4')]


def draw(theme: Theme) -> Canvas:
    """Returns the picture."""
    canvas = Canvas.make(HEIGHT, theme)
    left, width, gap = 1, 17.6, 2.5
    for number, (title, lines, fill) in enumerate(STEPS):
        x = left + number * (width + gap)
        canvas.box(x, 42, width, 12, title, lines, getattr(theme, fill))
        if number:
            canvas.arrow((x - gap + 0.2, 48), (x - 0.2, 48))
    last = left + 4 * (width + gap)
    canvas.words(1, 37, 'At each layer of the quantized pass, when all batches have arrived:',
                 ha='left', size=10, color=theme.faint)
    canvas.arrow((last + width / 2, 41.8), (last + width / 2, 34.4))
    _row(canvas, SOLVE, 23, 11, theme.solve)
    canvas.words(1, 18.6, 'Afterwards:', ha='left', size=10, color=theme.faint)
    canvas.arrow((88.2, 22.8), (88.2, 15.4))
    _row(canvas, RESULTS, 6, 9, theme.plain, arrows=False)
    canvas.words(50, 2.2, 'The codes go into the layer before the next one is looked at: '
                 'later layers see, and compensate, the errors of earlier ones.',
                 size=9.2, color=theme.faint)
    return canvas


def _row(canvas: Canvas, boxes, bottom: float, height: float, fill: str,
         arrows: bool = True) -> None:
    """Draws four boxes over the whole width."""
    width, gap = 22.6, 2.53
    for number, (title, lines) in enumerate(boxes):
        x = 1 + number * (width + gap)
        canvas.box(x, bottom, width, height, title, lines, fill)
        if number and arrows:
            canvas.arrow((x - gap + 0.2, bottom + height / 2), (x - 0.2, bottom + height / 2))
