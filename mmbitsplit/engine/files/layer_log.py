"""A line of JSON a solved layer, written while the run goes on: for programs that watch it."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbitsplit.calibration import Progress
from mmbitsplit.export.writing import unwritable
from mmbitsplit.structures import LayerReport

LAYER_LOG = 'layers.jsonl'


def layer_row(layer: LayerReport) -> dict[str, Any]:
    """Returns the row of ``layers.json`` and ``layers.jsonl``.

    Without ``input_ranges``: they are hundreds of numbers, and stand in ``report_data.json``.
    """
    row = dataclasses.asdict(layer)
    del row['input_ranges']
    return row


@contextmanager
def layer_log(work_dir: str | Path, written: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Yields a function that takes ``calibration.Progress`` and writes solved layers.

    Each line holds ``layer`` (its number, from 1), ``of`` (layers in all), ``time`` (seconds
    since 1970) and the fields of the layer's row in ``layers.json``. A resumed run writes the
    layers that it takes over first, so that the file is always of one whole run.

    Args:
        work_dir: Where ``layers.jsonl`` goes; an earlier one is replaced.
        written: ``False`` writes nothing: another process does.

    Raises:
        ValueError: The file cannot be written.
    """
    if not written:
        yield lambda step: None
        return
    path = Path(work_dir) / LAYER_LOG
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error

    def write(step: Progress) -> None:
        if step.layer is None:
            return
        row = {'layer': step.done, 'of': step.total, 'time': round(time.time(), 3),
               **layer_row(step.layer)}
        try:  # one write a line: a reader never sees half of one
            os.write(descriptor, (json.dumps(row, ensure_ascii=False) + '\n').encode())
        except OSError as error:
            raise unwritable(path, error) from error

    try:
        yield write
    finally:
        os.close(descriptor)
