"""Shows the calibration's progress on a terminal; silent elsewhere."""

import sys
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmbitsplit.calibration import Progress as Step

TITLES = {'float': 'float pass, batches', 'layers': 'solving layers'}


@contextmanager
def progress_bar(stream=None, shown: bool = True):
    """Yields a function that takes ``calibration.Progress`` and draws a bar a stage.

    Args:
        stream: Where to draw; standard error when not given. Nothing is drawn, and nothing
            printed, when it is not a terminal.
        shown: ``False`` draws nothing: another process does.
    """
    stream = stream or sys.stderr
    if not shown or not stream.isatty():
        yield lambda step: None
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
