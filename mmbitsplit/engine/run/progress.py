"""Shows the calibration's progress: a bar on a terminal, lines in the log elsewhere."""

import logging
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from mmbitsplit.calibration import Progress as Step

TITLES = {'importance': 'gradients of raw outputs, batches', 'float': 'float pass, batches',
          'widths, float': 'float model, batches',
          'widths, solve': 'solving layers at all widths',
          'widths, measure': 'measuring layers at all widths', 'layers': 'solving layers',
          'unit': 'learning a unit, steps',
          'front, blocks': 'measuring blocks at all widths',
          'front, search': 'measuring plans',
          'refine': 'losses of the whole model', 'tuning': 'tuning the whole model, steps'}
LOG_LINES = 10  # of the float pass
LOSSES = 50  # of the whole model, between two lines
QUIET = 30.0  # seconds of learning between two lines


@contextmanager
def progress_bar(logger: logging.Logger, stream=None, shown: bool = True):
    """Yields a function that takes ``calibration.Progress`` and draws a bar a stage.

    Args:
        logger: Told every layer, every tenth of the float pass, and twice a minute how far
            learning is, when there is no terminal.
        stream: Where to draw; standard error when not given.
        shown: ``False`` shows nothing: another process does.
    """
    stream = stream or sys.stderr
    if not shown:
        yield lambda step: None
        return
    terminal = stream.isatty()
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn('{task.fields[detail]}'))
    # Without a terminal the bar is not drawn, and still knows how much time is left.
    with Progress(*columns, console=Console(file=stream), disable=not terminal) as bar:
        tasks, learning = {}, _Learning(bar, logger)

        def show(step: Step) -> None:
            total = step.total or None
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(TITLES[step.stage], total=total, detail='')
            task = tasks[step.stage]
            if step.done < bar.tasks[task].completed:  # of another plan
                bar.reset(task, total=total)
            if step.stage == 'unit':
                learning.show(task, step, terminal)
                return
            detail = '' if step.layer is None else \
                f'{step.layer.name}  error {step.layer.error:.2g}'
            bar.update(task, completed=step.done, detail=detail)
            if not terminal:
                _log(logger, step, _time_left(bar.tasks[task]))

        yield show


class _Learning:
    """Shows which unit is learned, and what is left of all."""

    def __init__(self, bar: Progress, logger: logging.Logger):
        self.bar, self.logger = bar, logger
        self.unit, self.said = None, float('-inf')

    def show(self, task: Any, step: Step, terminal: bool) -> None:
        """Shows a step of learning a unit."""
        if step.unit != self.unit:  # a bar of its own, with its own speed
            self.unit = step.unit
            self.bar.reset(task, total=step.total)
        left = '' if step.seconds_left is None else \
            f', about {timedelta(seconds=int(step.seconds_left))} of learning left in all'
        what = f'unit {step.units_done + 1}/{step.units} {step.unit}'
        self.bar.update(task, completed=step.done, detail=what + left)
        now = self.bar.get_time()
        if not terminal and now - self.said >= QUIET:
            self.said = now
            self.logger.info('mmbitsplit: learning %s: step %d/%d%s', what, step.done, step.total,
                             left)


def _time_left(task: Task) -> str:
    """Returns ``', about 0:01:20 left'``; empty at the end, and before anything is known."""
    seconds = task.time_remaining
    return f', about {timedelta(seconds=int(seconds))} left' if seconds else ''


def _log(logger: logging.Logger, step: Step, left: str) -> None:
    if step.layer is not None:
        layer = step.layer
        logger.info('mmbitsplit: layer %d/%d %s: W%dA%d, relative output error %.2g (plain '
                    'rounding %.2g), %.1f s%s', step.done, step.total, layer.name,
                    layer.weight_bits, layer.activation_bits or 32, layer.error,
                    layer.error_rounding, layer.seconds, left)
    elif not step.total:
        if step.done % LOSSES == 0:
            logger.info('mmbitsplit: %s: %d so far', TITLES[step.stage], step.done)
    elif step.done % max(1, step.total // LOG_LINES) == 0:
        logger.info('mmbitsplit: %s %d/%d%s', TITLES[step.stage], step.done, step.total, left)
