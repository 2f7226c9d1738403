"""From runs to rows: mean and standard deviation over seeds, the paper's numbers beside them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.paper.grids import Bits
from bench.paper.methods import METHOD_ROWS, method_row
from bench.paper.models import BENCH_MODELS
from bench.paper.published import METRICS, published, published_float
from mmbitsplit.report.tables import HEADLINES, in_points

# Metrics that tables print, in this order, and their headings; others stay in results.json.
HEADINGS = {
    'accuracy/top1': 'Top-1', 'accuracy/top5': 'Top-5',
    **{f'coco/{kind}_{size}': f'{part} {name}'
       for kind, part in (('bbox', 'Box'), ('segm', 'Mask'))
       for size, name in (('mAP', 'AP'), ('mAP_50', 'AP50'), ('mAP_75', 'AP75'), ('mAP_s', 'APs'),
                          ('mAP_m', 'APm'), ('mAP_l', 'APl'))},
}


@dataclass(frozen=True)
class Figure:
    """A metric over seeds.

    Args:
        mean: Per cent, or AP in points.
        std: Sample standard deviation (divisor count - 1); ``None`` of one run.
        count: Number of runs.
    """

    mean: float
    std: float | None
    count: int

    def __str__(self) -> str:
        return f'{self.mean:.2f}' + ('' if self.std is None else f' ± {self.std:.2f}')


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One method at one width on one model.

    Args:
        table: Number of the paper's table.
        model, scope, method: As in the cells.
        bits: Of weights and activations.
        float_figures: Metrics of the float model.
        figures: Metrics over the seeds that finished.
        paper: What the paper reports of the same model, data, method and bits.
        paper_float: Its figures of the float model.
        seconds: Mean calibration time; ``None`` where no run finished.
        errors: Of the runs that failed.
    """

    table: int
    model: str
    scope: str
    method: str
    bits: Bits
    float_figures: Mapping[str, float]
    figures: Mapping[str, Figure]
    paper: Mapping[str, float]
    paper_float: Mapping[str, float]
    seconds: float | None
    errors: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The method's name in tables."""
        return method_row(self.method).title

    @property
    def model_label(self) -> str:
        """The model's name in tables."""
        return BENCH_MODELS[self.model].label if self.model in BENCH_MODELS else self.model


def metrics_of(rows: Sequence[SummaryRow]) -> list[str]:
    """Lists the metrics that tables print of some rows; the first ones of each kind lead."""
    found = {name for row in rows for name in row.float_figures}
    return [name for name in HEADINGS if name in found] or sorted(found)


def headlines_of(rows: Sequence[SummaryRow]) -> list[str]:
    """Lists the metrics that rows are compared by: top-1, box AP, mask AP."""
    names = metrics_of(rows)
    return [name for name in HEADLINES if name in names] or names[:1]


def cell_order(cell: Mapping[str, Any]) -> tuple:
    """Sorts cells as tables have them: models, parts, many bits first, methods, seeds."""
    models = list(BENCH_MODELS)
    return (cell['table'],
            models.index(cell['model']) if cell['model'] in models else len(models),
            cell['model'], cell['scope'] != 'all', cell['scope'], -cell['weight_bits'],
            -(cell['activation_bits'] or 32), *method_order(cell['method']), cell['seed'])


def method_order(name: str) -> tuple[int, int]:
    """Rows as they stand in ``METHOD_ROWS``, those of one method by their steps."""
    return ([*METHOD_ROWS].index(name.partition('@')[0]), sum(method_row(name).steps.values()))


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[SummaryRow]:
    """Groups the runs of cells that differ in nothing but the seed.

    Args:
        runs: See ``stored_runs``; failed ones have an ``error`` in place of figures.

    Raises:
        ValueError: A run belongs to no cell, two runs are of one cell, or the float figures of
            a model differ.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    seen = set()
    for run in runs:
        if 'cell' not in run:
            raise ValueError(f"the run of {run.get('config')} belongs to no table's cell; tables "
                             'of the paper are made of runs of tools/paper_tables.py.')
        cell = run['cell']
        key = tuple(cell[name] for name in ('table', 'model', 'scope', 'weight_bits',
                                            'activation_bits', 'method'))
        if (key, cell['seed']) in seen:
            raise ValueError(f'two runs are of the same cell: {cell}.')
        seen.add((key, cell['seed']))
        groups.setdefault(key, []).append(run)
    ordered = sorted(groups.items(), key=lambda item: cell_order(item[1][0]['cell']))
    return [_row(key, group) for key, group in ordered]


def _row(key: tuple, runs: Sequence[Mapping[str, Any]]) -> SummaryRow:
    table, model, scope, weight_bits, activation_bits, method = key
    bits, done = Bits(weight_bits, activation_bits), [run for run in runs if 'error' not in run]
    floats = _one_float(model, done)
    named = BENCH_MODELS[model].paper if model in BENCH_MODELS and scope == 'all' else None
    paper = {metric: published(table, named, method_row(method).paper, bits, metric)
             for metric in METRICS}
    paper_float = {metric: published_float(table, named, metric) for metric in METRICS}
    return SummaryRow(
        table=table, model=model, scope=scope, method=method, bits=bits, float_figures=floats,
        figures={
            metric: _figure([in_points(metric, run['quantized'][metric]) for run in done])
            for metric in floats if all(metric in run['quantized'] for run in done)},
        paper=_known(paper), paper_float=_known(paper_float),
        seconds=statistics.fmean(run['seconds']['calibration'] for run in done) if done else None,
        errors=tuple(run['error'] for run in runs if 'error' in run))


def _one_float(model: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The float figures that all runs share."""
    if any(run['float'] != runs[0]['float'] for run in runs):
        raise ValueError(f'the float figures of {model} differ between runs that are to be '
                         'averaged; they are of other weights or data.')
    # COCO says -1 where no object has the size in question.
    return {metric: in_points(metric, value) for metric, value in runs[0]['float'].items()
            if not (metric.startswith('coco/') and value < 0)} if runs else {}


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.fmean(values),
                  statistics.stdev(values) if len(values) > 1 else None, len(values))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
