"""Rows of the benchmarks whose widths are chosen by a budget, beside those of one width."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.method_names import typed_options
from mmbitsplit.structures.options import from_mapping
from mmbitsplit.structures.widths import MAX_BITS, BudgetSpec

WIDTHS = ('widths', 'activation_widths')


@dataclass(frozen=True)
class Row:
    """Widths that are asked for.

    Args:
        name: In the output.
        weight_bits: Of all layers; in a row with a budget not used.
        activation_bits: Of their inputs, where those are not chosen.
        budget: ``quantization.budget``; empty for one width everywhere.
    """

    name: str
    weight_bits: int
    activation_bits: int
    budget: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """What it adds to a ``quantization`` dict."""
        return {'budget': dict(self.budget)} if self.budget else {}


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--budget`` and ``--budget-options``."""
    parser.add_argument('--budget', type=float, nargs='+', default=[], metavar='BITS',
                        help='more rows: layers get widths within so many bits a weight on '
                        'average, once for each width of the inputs in --bits')
    parser.add_argument('--budget-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='other keys of quantization.budget, such as widths=2,3,4,8 '
                        'activation_widths=4,8 sensitivity=fisher evaluations=4')


def budget_options(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as keys of ``quantization.budget``; widths are separated by commas.

    Raises:
        ValueError: There is no =, or a width is no number.
    """
    for text in texts:
        if '=' not in text:
            raise ValueError(f"--budget-options: '{text}' has no =; write such as evaluations=4.")
    found: dict[str, Any] = dict(text.split('=', 1) for text in texts)
    for name in WIDTHS:
        if found.get(name, 'tied') != 'tied':
            parts = found.pop(name).split(',')
            if not all(part.isdigit() for part in parts):
                raise ValueError(f"--budget-options {name}={','.join(parts)}: write widths as "
                                 '2,3,4,8.')
            found[name] = [int(part) for part in parts]
    texts = [f'{key}={value}' for key, value in found.items() if not isinstance(value, list)]
    return {**found, **typed_options(texts)}


def width_rows(args: argparse.Namespace, bits: Sequence[str]) -> list[Row]:
    """Returns a row for each of ``bits``, then one for each budget and width of the inputs there.

    Args:
        args: With what ``add_budget_arguments`` reads.
        bits: Widths of weights and inputs, such as 'W4A8'; those of the inputs in rows with a
            budget, too, unless they are chosen.

    Raises:
        ValueError: Bits cannot be read, or the budget is refused (``BudgetSpec``).
    """
    options = budget_options(args.budget_options)
    rows = []
    for text in bits:
        weight, _, activation = text.lower().removeprefix('w').partition('a')
        if not weight.isdigit() or not activation.isdigit():
            raise ValueError(f"--bits: '{text}' is not known; write weight and input bits as w4a8 "
                             'or 4/8, as the help says.')
        rows.append(Row(text, int(weight), int(activation)))
    inputs = list(dict.fromkeys(row.activation_bits for row in rows))
    chosen = options.get('activation_widths')
    for mean in args.budget:
        budget = {'weight_bits': mean, **options}
        from_mapping(BudgetSpec, budget, '--budget-options')
        rows += [Row(f'mean {mean:g} bits, A{bits}', MAX_BITS, bits, budget) for bits in inputs] \
            if chosen is None else \
            [Row(f'mean {mean:g} bits, A{_chosen(chosen)}', MAX_BITS, MAX_BITS, budget)]
    return rows


def _chosen(widths: Any) -> str:
    return ' ' + widths if isinstance(widths, str) else ' of ' + ', '.join(map(str, widths))


def plan_taken(budget: Mapping[str, Any]) -> str:
    """Says which plan was taken, of how many, with its bits a weight and bytes.

    Args:
        budget: Of a report.
    """
    plan = budget['plans'][budget['chosen']]
    return (f"{plan['name']} of {len(budget['plans'])}: {plan['costs']['weight_bits']:.2f} bits, "
            f"{plan['trial']['payload'] / 1e3:.1f} kB")
