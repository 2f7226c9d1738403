"""The paper's own numbers, from ``published.csv``, each with the number of its table."""

import csv
from functools import cache
from importlib.resources import files

from bench.paper.grids import Bits

# The metrics of the tables as evaluators name them here, in the units that tables print.
METRICS = {'accuracy/top1': 'top1', 'accuracy/top5': 'top5',
           **{f'coco/{kind}_{size}': f'{kind}_{size}' for kind in ('bbox', 'segm')
              for size in ('mAP', 'mAP_50', 'mAP_75')}}


@cache
def _numbers() -> dict[tuple[int, str, str, str], float]:
    """Values by table, model, method and bits, metric."""
    text = files('bench.paper').joinpath('published.csv').read_text(encoding='utf-8')
    return {(int(row['table']), row['model'],
             _key(row['method'], row['weight_bits'], row['activation_bits']),
             row['metric']): float(row['value']) for row in csv.DictReader(text.splitlines())}


def _key(method: str, weight_bits: str, activation_bits: str) -> str:
    return f'{method} w{weight_bits}a{activation_bits or 32}' if weight_bits else method


def published(table: int, model: str | None, method: str | None, bits: Bits, metric: str,
              ) -> float | None:
    """Returns what the paper reports, ``None`` where it has no such number.

    Args:
        table: Its table, 1 to 5.
        model: The paper's name of the model, ``None`` where model or data are others.
        method: The paper's name of the method, ``None`` where it has none.
        bits: Of weights and activations.
        metric: As the evaluator names it, such as ``'accuracy/top1'``.

    Returns:
        Per cent, or AP in points.

    Source: Wang et al., ICML 2020, Tables 1 to 5.
    """
    return _numbers().get((table, model, f'{method} {bits}', METRICS.get(metric)))


def published_float(table: int, model: str | None, metric: str) -> float | None:
    """Returns the paper's figure of the float model, ``None`` where it has none."""
    return _numbers().get((table, model, 'float', METRICS.get(metric)))
