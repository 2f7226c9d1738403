"""A page of the front of a model with several widths: ``pareto.html``."""

from collections.abc import Mapping
from typing import Any

from mmbitsplit.report.budget import LOSSES, SIZE, chosen_widths
from mmbitsplit.report.budget_figures import (
    UNITS,
    cost_value,
    front_figure,
    positive,
    sensitivity_figure,
)
from mmbitsplit.report.page import Table, build_page
from mmbitsplit.report.result_figures import heat_map
from mmbitsplit.report.tables import text_table
from mmbitsplit.structures.plan_choice import UNIFORM
from mmbitsplit.structures.plan_front import undominated

COSTS = ('weight_bits', 'bytes', 'bitops')
AGAINST = {'widest': 'the model itself with everything at its widest',
           'reference': 'the model that was given to compare with'}


def front_page(found: Mapping[str, Any], title: str) -> str:
    """Returns a page: losses over size, widths of each plan, what each block loses.

    Args:
        found: ``pareto.json``.
        title: Of the page.

    Raises:
        ImportError: plotly or Jinja2 is not installed.
    """
    plans, blocks = found['plans'], list(found['blocks'])
    figures = {
        'front': measured_figure(found),
        'widths': heat_map(blocks, [str(plan['name']) for plan in plans],
                           [[chosen_widths(plan)[name].weight for plan in plans]
                            for name in blocks], 'weight bits', logarithmic=False, digits=0),
        'sensitivity': sensitivity_figure(found['table'], loss_words(found))}
    header, rows = plan_rows(found)
    return build_page('pareto.html', title, figures, unit=loss_words(found),
                      against=AGAINST[found['against']], measured=found['measured'],
                      seconds=found['seconds'], free=len(blocks),
                      plans=Table(header, rows, numeric=range(3, 3 + len(COSTS) + 2)))


def measured_figure(found: Mapping[str, Any], cost: str = SIZE) -> dict[str, Any]:
    """Draws the measured loss of plans over a cost, all that were looked at behind them.

    Args:
        found: ``pareto.json``.
        cost: A key of ``UNITS``.
    """
    # A uniform plan that a budget has taken stands there as such.
    figure = front_figure(found['front'], [plan for plan in found['plans'] if not (
        plan['source'] == UNIFORM and plan['budget'])], cost)
    for trace in figure['data']:
        if 'textposition' in trace:  # steps come from the left and go down
            trace['textposition'] = 'top right'
    points = [(cost_value(cost, one[cost]), one['whole']) for one in found['looked_at']]
    best = [points[number] for number in undominated(points)]
    for title, chosen, colour, mode in (('looked at', points, '@quiet', 'markers'),
                                        ('front, measured', best, '@ours', 'lines')):
        figure['data'].insert(0, dict(
            type='scatter', mode=mode, name=title, hoverinfo='skip',
            x=[x for x, _ in chosen], y=[positive(y) for _, y in chosen],
            marker=dict(color=colour, size=4, opacity=0.5),
            line=dict(color=colour, width=1.5, shape='hv')))
    return figure


def front_text(found: Mapping[str, Any]) -> str:
    """Returns a row a plan, as the terminal shows it.

    Args:
        found: ``pareto.json``.
    """
    return text_table(*plan_rows(found))


def plan_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: plan, budget, file, costs, losses."""
    header = ['plan', 'budget', 'file', *(UNITS[name] for name in COSTS), 'loss, added up',
              'loss, measured', 'on the front']
    points = [(plan['costs'][SIZE], plan['whole']) for plan in found['plans']]
    best = set(undominated(points))
    return header, [[
        plan['name'], plan['budget'], plan.get('file', ''),
        *(f'{cost_value(name, plan["costs"][name]):.4g}' for name in COSTS),
        f"{plan['predicted']:.3g}", f"{plan['whole']:.3g}", 'yes' if number in best else '']
        for number, plan in enumerate(found['plans'])]


def loss_words(found: Mapping[str, Any]) -> str:
    """What losses are, in words."""
    return LOSSES.get(str(found['loss']), str(found['loss']))
