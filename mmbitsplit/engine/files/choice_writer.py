"""Writes ``budget.json``: the table of widths, the plans that were tried, the front."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbitsplit.calibration.budget import NoPlanHolds
from mmbitsplit.export.writing import write_json

BUDGET = 'budget.json'


def write_choice(work_dir: str | Path, choice: Mapping[str, Any]) -> None:
    """Writes how widths were chosen.

    Args:
        work_dir: Of the run.
        choice: From ``PlanChoice.to_json``.

    Raises:
        ValueError: The file cannot be written.
    """
    write_json(Path(work_dir) / BUDGET, dict(choice))


@contextmanager
def keeping_choice(work_dir: str | Path, written: bool = True) -> Iterator[None]:
    """Around a search: where no plan holds, what was tried is written all the same.

    Args:
        work_dir: Of the run.
        written: Whether this process writes.
    """
    try:
        yield
    except NoPlanHolds as error:
        if written:
            write_choice(work_dir, error.choice.to_json())
        raise
