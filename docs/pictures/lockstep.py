"""The picture of the two passes: one batch after another, then all batches side by side."""

from theme import Canvas, Theme

HEIGHT = 42
BATCHES, LAYERS = 4, 3
ROW, ROW_STEP, LOWEST = 3.4, 5.2, 8.0
FLOAT_LEFT, FLOAT_WIDTH = 11.0, 6.2
START, STEP, RUN, SOLVE = 40.5, 19.0, 2.6, 4.6


def row_bottom(batch: int) -> float:
    """Lower edge of a batch's row; the first batch is on top."""
    return LOWEST + (BATCHES - 1 - batch) * ROW_STEP


def draw(theme: Theme) -> Canvas:
    """Returns the picture."""
    canvas = Canvas.make(HEIGHT, theme)
    top = row_bottom(0) + ROW
    for batch in range(BATCHES):
        canvas.words(9.5, row_bottom(batch) + ROW / 2, f'batch {batch + 1}', ha='right', size=10)
    _float_pass(canvas)
    _quantized_pass(canvas, top)
    canvas.arrow((FLOAT_LEFT, 5), (99, 5))
    canvas.words(55, 2.4, 'time', size=10, color=theme.faint)
    return canvas


def _float_pass(canvas: Canvas) -> None:
    theme, middle = canvas.theme, FLOAT_LEFT + BATCHES * FLOAT_WIDTH / 2
    canvas.words(middle, 40, 'Float pass', weight='bold')
    canvas.words(middle, 35, 'one batch after another;\nkept: each layer\'s output\n'
                 'at sampled positions', size=9.2, color=theme.faint, linespacing=1.5)
    for batch in range(BATCHES):
        left = FLOAT_LEFT + batch * FLOAT_WIDTH
        canvas.box(left + 0.2, row_bottom(batch), FLOAT_WIDTH - 0.4, ROW, '',
                   fill=theme.float_pass)
        for layer in range(1, LAYERS + 1):  # where a layer leaves its targets
            x = left + layer * FLOAT_WIDTH / (LAYERS + 1)
            canvas.axis.plot([x, x], [row_bottom(batch) + 0.7, row_bottom(batch) + ROW - 0.7],
                             color=theme.text, linewidth=1.2)


def _quantized_pass(canvas: Canvas, top: float) -> None:
    theme, end = canvas.theme, START + LAYERS * STEP
    canvas.words((START + end) / 2, 40, 'Quantized pass, in lockstep', weight='bold')
    canvas.words((START + end) / 2, 35.9,
                 'a batch runs to the next unsolved layer and sleeps;\n'
                 'the layer is solved when all have arrived', size=9.2, color=theme.faint,
                 linespacing=1.5)
    for layer in range(LAYERS):
        left = START + layer * STEP
        solve = left + BATCHES * RUN + 1.2
        for batch in range(BATCHES):
            x, y = left + batch * RUN, row_bottom(batch)
            canvas.box(x + 0.1, y, RUN - 0.2, ROW, '', fill=theme.quantized)
            canvas.axis.plot([x + RUN + 0.2, solve - 0.3], [y + ROW / 2] * 2, color=theme.faint,
                             linewidth=1.4, linestyle=(0, (1, 2)))
        canvas.box(solve, LOWEST, SOLVE, top - LOWEST, '', fill=theme.solve)
        canvas.words(solve + SOLVE / 2, (LOWEST + top) / 2, f'solve layer {layer + 1}',
                     rotation=90, size=10, weight='bold')
        canvas.words(solve + SOLVE / 2, top + 1.7, 'codes in', size=9.2, color=theme.faint)
        canvas.words(left + 2 * RUN, top + 1.7, ('on ' if layer else '') + f'to layer {layer + 1}',
                     size=9.2, color=theme.faint)
