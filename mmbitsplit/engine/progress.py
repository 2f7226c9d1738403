"""Shows the calibration's progress: a bar on a terminal, lines in the log elsewhere."""

import logging
import sys
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmbitsplit.calibration import Progress as Step

TITLES = {'float': 'float pass, batches', 'layers': 'solving layers'}
LOG_LINES = 10  # of the float pass


@contextmanager
def progress_bar(logger: logging.Logger, stream=None, shown: bool = True):
    """Yields a function that takes ``calibration.Progress`` and draws a bar a stage.

    Args:
        logger: Told every layer, and every tenth of the float pass, when there is no terminal.
        stream: Where to draw; standard error when not given.
        shown: ``False`` shows nothing: another process does.
    """
    stream = stream or sys.stderr
    if not shown:
        yield lambda step: None
        return
    if not stream.isatty():
        yield lambda step: _log(logger, step)
        return
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn('{task.fields[detail]}'))
    with Progress(*columns, console=Console(file=stream)) as bar:
        tasks = {}

        def show(step: Step) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(TITLES[step.stage], total=step.total, detail='')
            detail = '' if step.layer is None else \
                f'{step.layer.name}  error {step.layer.error:.2g}'
            bar.update(tasks[step.stage], completed=step.done, detail=detail)

        yield show


def _log(logger: logging.Logger, step: Step) -> None:
    if step.layer is not None:
        layer = step.layer
        logger.info('mmbitsplit: layer %d/%d %s: W%d, error %.2g (plain rounding %.2g), %.1f s',
                    step.done, step.total, layer.name, layer.weight_bits, layer.error,
                    layer.error_rounding, layer.seconds)
    elif step.done % max(1, step.total // LOG_LINES) == 0:
        logger.info('mmbitsplit: %s %d/%d', TITLES[step.stage], step.done, step.total)
