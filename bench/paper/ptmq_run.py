"""Runs the cells of PTMQ's tables one after another; finished ones are taken over."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.paper.ptmq import PTMQTable, Row
from bench.paper.ptmq_subjects import Subject
from mmbitsplit.structures import Widths


@dataclass(frozen=True, kw_only=True)
class PTMQRun:
    """How the cells of a table are run.

    Args:
        subject: The model.
        iterations: Steps for each block, of all methods; ``None`` for as many as published.
        options: Of all methods, ``KEY=VALUE``, such as a learning rate for few steps.
        num_images: To calibrate on.
        seeds: Of the calibrations.
    """

    subject: Subject
    iterations: int | None = None
    options: Sequence[str] = ()
    num_images: int = 1024
    seeds: Sequence[int] = (0,)

    @property
    def heading(self) -> str:
        """What was run, in words."""
        steps = 'as many steps as published' if self.iterations is None else \
            f'{self.iterations} steps for each block'
        options = f', {", ".join(self.options)}' if self.options else ''
        return (f'{self.subject.label}, {self.num_images} images, {steps}{options}, '
                f'{len(self.seeds)} seed(s), {self.subject.metric}.')

    def method(self, name: str, **options: Any) -> dict[str, Any]:
        """The ``method`` dict of a request.

        Args:
            name: Of a registered method.
            options: Of a row; they win.
        """
        from benchmarks.method_names import own_options

        steps = {} if self.iterations is None else dict(iterations=self.iterations)
        return {'type': name, **steps, **own_options(name, self.options), **options}

    def requests(self, row: Row, widths: Sequence[Widths],
                 ) -> list[tuple[tuple[Widths, ...], dict[str, Any]]]:
        """What a row calibrates: the widths that a calibration gives, and its request."""
        if row.options is None:
            return [((one,), dict(
                weight=dict(num_bits=one.weight), activation=dict(num_bits=one.activation),
                method=self.method('QDrop'))) for one in widths]
        inputs = sorted({one.activation for one in widths})
        tied = all(one.weight == one.activation for one in widths)
        own = {} if tied else dict(activation_widths=inputs)
        return [(tuple(widths), dict(method=self.method(
            'PTMQ', widths=[one.weight for one in widths], **own, **row.options)))]


@dataclass
class Cells:
    """Figures of calibrations that are finished, in a file.

    Args:
        path: JSON; what it holds of other settings is left alone.
        run: The settings.
        redo: Whether what it holds is run again.
    """

    path: Path
    run: PTMQRun
    redo: bool = False
    _found: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._found = json.loads(self.path.read_text(encoding='utf-8'))
        except FileNotFoundError:
            self._found = {}
        except ValueError as error:
            raise ValueError(f'{self.path} is damaged ({error}); remove it, or use another '
                             '--work-dir.') from error

    def __call__(self, request: Mapping[str, Any], seed: int,
                 compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of a request, computed where it is not known.

        Args:
            request: ``quantization`` dict; with the settings it says what the cell is.
            seed: Of the calibration.
            compute: Gives ``figures`` by width, and ``seconds``.
        """
        run = self.run
        key = json.dumps([run.subject.label, run.num_images, seed, request], sort_keys=True)
        if self.redo or key not in self._found:
            self._found[key] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self._found, indent=1), encoding='utf-8')
        return self._found[key]


def run_rows(table: PTMQTable, rows: Sequence[Row], cells: Cells,
             told: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yields a row of results after another; see ``ptmq.markdown``.

    Args:
        table: For its widths.
        rows: Of it.
        cells: Where figures are kept.
        told: Called with a line about each calibration.
    """
    run = cells.run
    labels = [_label(one) for one in table.widths]
    full = cells({}, 0, lambda: {'figures': {'float': run.subject.float_figure()}, 'seconds': 0.0})
    told(f'{run.subject.label}, float: {full["figures"]["float"]:.2f}')
    yield {'name': 'float', 'seconds': 0.0, 'runs': 0,
           'figures': {label: [full['figures']['float']] for label in labels}}
    for row in rows:
        found: dict[str, list[float]] = {label: [] for label in labels}
        seconds, requests = 0.0, run.requests(row, table.widths)
        for seed in run.seeds:
            for widths, request in requests:
                cell = cells(request, seed, _computing(run, widths, request, seed))
                for label, figure in cell['figures'].items():
                    found[label].append(figure)
                seconds += cell['seconds'] / len(run.seeds)
                told(f'{row.name}, seed {seed}: ' + ', '.join(
                    f'{label} {figure:.2f}' for label, figure in cell['figures'].items())
                    + f' ({cell["seconds"]:.0f} s)')
        yield {'name': row.name, 'figures': found, 'seconds': seconds, 'runs': len(requests)}


def _computing(run: PTMQRun, widths: Sequence[Widths], request: Mapping[str, Any], seed: int,
               ) -> Callable[[], dict[str, Any]]:
    """Calibrates and evaluates at each width."""
    def compute() -> dict[str, Any]:
        from mmbitsplit.models import set_bits

        model, seconds = run.subject.calibrated(request, seed, run.num_images)
        figures = {}
        for one in widths:
            if len(widths) > 1:
                set_bits(model, weight=one.weight, activation=one.activation)
            figures[_label(one)] = run.subject.figure(model)
        return {'figures': figures, 'seconds': seconds}
    return compute


def _label(widths: Widths) -> str:
    return f'W{widths.weight}A{widths.activation}'
