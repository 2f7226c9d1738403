"""What a budget led to: a section of a run's page, and a page of plans of several budgets."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmbitsplit.report.budget_figures import (
    ASKED,
    UNITS,
    cost_value,
    front_figure,
    is_uniform,
    measured_loss,
    sensitivity_figure,
    widths_figure,
)
from mmbitsplit.report.page import Table, build_page
from mmbitsplit.report.result_figures import heat_map
from mmbitsplit.structures import Widths, WidthTable

LOSSES = {
    'kl': 'Kullback-Leibler divergence of the class probabilities',
    'raw': 'squared change of the raw outputs, relative to their spread',
    'cross_entropy': 'cross-entropy of the labels',
    'block_kl': 'Kullback-Leibler divergence, mean of the blocks'}
# Of sensitivities that are estimated, in units of their own.
ESTIMATES = {'fisher': 'output error weighted by squared gradients', 'error': 'output error'}
SIZE = 'bytes'
MISLED = 1.5  # a loss that is so many times what was added up is worth a sentence


def budget_section(budget: Mapping[str, Any], layers: Sequence[Mapping[str, Any]],
                   ) -> dict[str, Any]:
    """Returns what the template ``run_budget.html`` shows, ``figures`` among it.

    Args:
        budget: ``budget.json``.
        layers: Rows of ``layers.json``.
    """
    table, unit = WidthTable.from_json(budget['table']), loss_unit(budget)
    plans, chosen, estimate = budget['plans'], int(budget['chosen']), estimated(budget)
    cost, free = front_cost(budget), free_layers(table)
    widths = {row['name']: Widths(row['weight_bits'], row['activation_bits']) for row in layers}
    figures = {'budget-widths': widths_figure(widths, free)}
    if free:
        figures['budget-sensitivity'] = sensitivity_figure(budget['table'], estimate or unit)
    front = [] if estimate else budget['front']
    figures['budget-front'] = front_figure(front, plans, cost, chosen)
    return {
        'figures': figures, 'sentence': sentence(budget), 'estimate': estimate,
        'misled': '' if estimate else misled(plans[chosen]),
        'fixed': len(widths) - len(free), 'free': len(free), 'unit': unit,
        'steps': steps_table(table, size_table(budget), chosen_widths(plans[chosen])),
        'plans': plans_table(plans, chosen)}


def plan_page(budget: Mapping[str, Any], title: str) -> str:
    """Returns a page of the plans of several budgets: the front, their widths, what bits cost.

    Args:
        budget: ``table``, ``costs``, ``front``, ``plans``, ``loss``, ``base`` and ``limits`` as
            in ``budget.json``; ``chosen`` of none.
        title: Of the page.

    Raises:
        ImportError: plotly or Jinja2 is not installed.
    """
    table, unit, plans = WidthTable.from_json(budget['table']), loss_unit(budget), budget['plans']
    names, estimate = [str(plan['name']) for plan in plans], estimated(budget)
    free = list(free_layers(table))
    figures = {
        'front': front_figure([] if estimate else budget['front'], plans, front_cost(budget)),
        'widths': heat_map(free, names, [[chosen_widths(plan)[name].weight for plan in plans]
                                         for name in free], 'weight bits', logarithmic=False,
                           digits=0),
        'sensitivity': sensitivity_figure(budget['table'], estimate or unit)}
    return build_page(
        'plan.html', title, figures, unit=unit, estimate=estimate,
        plans=plans_table(plans, None), free=len(free),
        inputs=any(own.activation for row in table.layers.values() for own in row))


def loss_unit(budget: Mapping[str, Any]) -> str:
    """What losses of a budget are, in words."""
    return LOSSES.get(str(budget['loss']), str(budget['loss']))


def estimated(budget: Mapping[str, Any]) -> str:
    """What the losses of the layers are where they are estimates; empty where they were measured.

    Their sums are in other units than losses of plans then.
    """
    kind = str(budget.get('sensitivity', 'measured'))
    return '' if kind == 'measured' else ESTIMATES.get(kind, kind)


def front_cost(budget: Mapping[str, Any]) -> str:
    """The cost that the front is drawn over: the first that was limited, else the payload."""
    return next((name for name in budget['limits'] if name in UNITS), SIZE)


def free_layers(table: WidthTable) -> dict[str, dict[Widths, float]]:
    """Rows of layers that have a choice."""
    return {name: row for name, row in table.layers.items() if len(row) > 1}


def size_table(budget: Mapping[str, Any]) -> WidthTable:
    """Bytes of each layer at each of its widths."""
    return WidthTable.from_json(budget['costs'][SIZE])


def chosen_widths(plan: Mapping[str, Any]) -> dict[str, Widths]:
    """Widths of a plan's layers."""
    return {name: Widths.read(text) for name, text in plan['widths'].items()}


def sentence(budget: Mapping[str, Any]) -> str:
    """Says what was asked for and what was taken."""
    plan = budget['plans'][int(budget['chosen'])]
    limits = ' and '.join(ASKED[name].format(cost_value(name, value))
                          for name, value in budget['limits'].items())
    asked = [f'at most {limits}'] if limits else []
    if budget.get('max_drop') is not None:
        asked.append(f"a drop of at most {budget['max_drop']:g} points")
    costs = plan['costs']
    trial = plan.get('trial') or {}
    size = costs[SIZE] if trial.get('payload') is None else trial['payload']
    return (f"Asked for: {' and '.join(asked)}. Taken: {plan['name']}, "
            f"{costs['weight_bits']:.2f} bits a weight, payload {cost_value(SIZE, size):.1f} kB"
            + (f" ({cost_value(SIZE, costs[SIZE]):.1f} kB planned)" if size != costs[SIZE] else '')
            + f"; {len(budget['plans'])} "
            f"plan{'s were' if len(budget['plans']) > 1 else ' was'} calibrated and measured.")


def misled(plan: Mapping[str, Any]) -> str:
    """Says how far the sum of losses was from that of all layers at once, where that is far.

    Layers are solved alike for both; calibrated one after the other they do better than either.
    """
    whole, predicted = plan.get('whole'), float(plan['predicted'])
    truth = measured_loss(plan) if whole is None else float(whole)
    if not (truth > 0 and predicted > 0) or max(truth, predicted) < MISLED * min(truth, predicted):
        return ''
    return (f'The losses of the layers add up to {predicted:.3g}, measured was {truth:.3g}: '
            'layers make each other\'s errors '
            + ('worse' if truth > predicted else 'smaller') + ' here. Plans are judged by what '
            'was measured.')


def plans_table(plans: Sequence[Mapping[str, Any]], chosen: int | None) -> Table:
    """A row a plan: costs, the loss added up and as measured."""
    dropped = any((plan.get('trial') or {}).get('drop') is not None for plan in plans)
    tried = any(plan.get('trial') for plan in plans)
    costs = [name for name in UNITS if any(name in plan['costs'] for plan in plans)]
    header = ['plan', *(UNITS[name] for name in costs), 'loss, added up', 'all layers at once',
              *(['calibrated'] if tried else []), *(['drop, points'] if dropped else []), 'uniform']
    rows = []
    for number, plan in enumerate(plans):
        trial = plan.get('trial') or {}
        numbers = [cost_value(name, plan['costs'][name]) if name in plan['costs'] else None
                   for name in costs]
        numbers += [plan['predicted'], plan.get('whole'), *([trial.get('loss')] if tried else [])]
        rows.append([str(plan['name']) + (' (taken)' if number == chosen else ''),
                     *(('–', None) if value is None else (f'{value:.4g}', value)
                       for value in numbers),
                     *([('–', None) if trial.get('drop') is None else
                        (f"{trial['drop']:.2f}", trial['drop'])] if dropped else []),
                     'yes' if is_uniform(plan) else 'no'])
    return Table(header, rows, numeric=range(1, len(header) - 1), sortable=True)


def steps_table(table: WidthTable, sizes: WidthTable, plan: Mapping[str, Widths]) -> Table:
    """What a step to the next wider and to the next narrower weight would change, a row a layer.

    Args:
        table: Losses.
        sizes: Bytes.
        plan: What each layer has.
    """
    rows = []
    for name, row in free_layers(table).items():
        now = plan[name]
        cells: list[Any] = [name, str(now), _cell(row[now]),
                            _cell(cost_value(SIZE, sizes.layers[name][now]))]
        for sign in (1, -1):
            other = _next(row, now, sign)
            if other is None:
                cells += [('–', None)] * 2
                continue
            change = row[other] - row[now]
            size = cost_value(SIZE, sizes.layers[name][other] - sizes.layers[name][now])
            cells += [(str(other), other.weight), _cell(-change / size if size else None)]
        rows.append(cells)
    return Table(['layer', 'has', 'its loss', 'its kB', 'next wider', 'loss saved a kB',
                  'next narrower', 'loss added a kB'], rows, numeric=(2, 3, 5, 7), sortable=True,
                 layers=[row[0] for row in rows])


def _next(row: Mapping[Widths, float], now: Widths, sign: int) -> Widths | None:
    """The nearest weight width in a direction, at the same input width or, tied, its own."""
    others = [own for own in row if sign * (own.weight - now.weight) > 0]
    same = [own for own in others if own.activation == now.activation] or others
    return min(same, key=lambda own: abs(own.weight - now.weight), default=None)


def _cell(value: float | None) -> tuple[str, float | None]:
    return ('–', None) if value is None else (f'{value:.3g}', value)
