"""The arguments of budgets: what ``--budget 4.5`` and ``--max-drop 0.5`` make of a config."""

import argparse
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmbitsplit.cli.command import positive
from mmbitsplit.structures.widths import LIMITS, read_limits


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--budget``, ``--latency-table``, ``--max-drop`` and ``--evaluations``."""
    parser.add_argument(
        '--budget', action='append', metavar='LIMIT', help='choose widths layer by layer within '
        'a limit: 4.5 (mean bits of a weight), 12MB (payload), bitops=0.2 or latency=0.6 (parts '
        'of the model with 8 bits everywhere); may be given several times')
    parser.add_argument('--latency-table', metavar='CSV', help='times of layers at widths, for '
                        '--budget latency=...; benchmarks/layer_latency.py makes one')
    parser.add_argument('--max-drop', type=float, metavar='POINTS', help='search the smallest '
                        'model whose metric falls by no more; with --budget, within it')
    parser.add_argument('--evaluations', type=positive, metavar='N', help='most plans that are '
                        'calibrated and measured for it; default 6')


def apply_budget(cfg: Config, args: argparse.Namespace) -> None:
    """Writes the arguments into ``cfg.quantization.budget``; limits replace those of the config.

    Raises:
        ValueError: A limit cannot be read, or one of the others is given without a budget.
    """
    changes: dict[str, Any] = {'latency_table': args.latency_table, 'max_drop': args.max_drop,
                               'evaluations': args.evaluations}
    changes = {name: value for name, value in changes.items() if value is not None}
    request = cfg.get('quantization')
    if not (changes or args.budget) or not isinstance(request, Mapping):
        return  # what is no request is refused by whoever reads it
    budget = dict(request.get('budget') or {})
    if args.budget:
        budget = {name: value for name, value in budget.items() if name not in LIMITS}
        changes |= read_limits(args.budget)
    if not budget and not args.budget and args.max_drop is None:
        name = next(iter(changes)).replace('_', '-')
        raise ValueError(f'--{name} is for a search of widths; give --budget (such as --budget '
                         '4.5) or --max-drop too.')
    cfg.quantization.budget = {**budget, **changes}


def budget_text(budget: Mapping[str, Any]) -> str:
    """Says which plan was taken of which, a line each.

    Args:
        budget: Of ``results.json``.
    """
    from mmbitsplit.report.budget import misled, sentence

    plans, plan = budget['plans'], budget['plans'][budget['chosen']]
    measured = budget['sensitivity'] == 'measured'
    lines = [sentence(budget)]
    if budget['max_drop'] is None:
        lines.append(f"Loss ({budget['loss']}) when calibrated: " + ', '.join(
            f"{one['name']} {one['trial']['loss']:.3g}" for one in plans) + '.')
    else:
        lines += [f"  evaluation {number}: {one['name']}, {one['costs']['weight_bits']:.2f} bits, "
                  f"{one['trial']['payload'] / 1e3:.1f} kB: drop {one['trial']['drop']:.2f}"
                  for number, one in enumerate(plans, 1)]
    if measured and plan['whole'] is not None:
        lines.append(misled(plan) or (
            f"The losses of the layers add up to {plan['predicted']:.3g}; with all layers at "
            f"their widths at once it was {plan['whole']:.3g}."))
    return '\n'.join(lines)
