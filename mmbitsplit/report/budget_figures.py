"""Plotly figures of widths that were chosen within a budget, from ``budget.json``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbitsplit.report.layer_figures import layer_parts, part_shapes
from mmbitsplit.report.result_figures import heat_map
from mmbitsplit.structures import Widths

UNITS = {'weight_bits': 'mean bits of a weight', 'bytes': 'payload, kB',
         'bitops': 'bit operations, parts of 8-bit', 'latency': 'time, parts of 8-bit'}
ASKED = {'weight_bits': '{:g} bits a weight on average', 'bytes': '{:.1f} kB',
         'bitops': '{:g} of the bit operations of 8 bits everywhere',
         'latency': '{:g} of the time of 8 bits everywhere'}
IN_KB = 1e-3


def cost_value(name: str, value: float) -> float:
    """Returns a cost in the unit that ``UNITS`` names."""
    return IN_KB * value if name == 'bytes' else value


def widths_figure(widths: Mapping[str, Widths], free: Iterable[str]) -> dict[str, Any]:
    """Draws a bar a layer, bits of its weights above those of its input.

    Args:
        widths: Of each layer, in the order of execution; ``activation=None`` for a float input.
        free: Layers whose widths were chosen; those of the others were fixed.
    """
    names, chosen = list(widths), set(free)
    traces = []
    for title, fixed in (('chosen', False), ('fixed', True)):
        mine = [(name not in chosen) == fixed for name in names]
        if not any(mine):
            continue
        for axis, what, colour, bits in (
                ('y', 'weights', '@weight', [widths[name].weight for name in names]),
                ('y2', 'input', '@input', [widths[name].activation for name in names])):
            traces.append(dict(
                type='bar', name=f'{what}, {title}', x=list(range(len(names))), width=0.8,
                y=[value if own else None for value, own in zip(bits, mine)], yaxis=axis,
                marker=dict(color=colour, opacity=0.35 if fixed else 1),
                customdata=[f'<b>{name}</b><br>{what}: '
                            f'{"float" if value is None else f"{value} bits"}, {title}'
                            for name, value in zip(names, bits)],
                hovertemplate='%{customdata}<extra></extra>'))
    ticks = dict(tickvals=[2, 4, 6, 8], range=[0, 9], fixedrange=True)
    bands, labels = layer_parts(names)
    return dict(data=traces, least_width=72 + 8 * len(names), layout=dict(
        barmode='overlay', hovermode='closest', height=360, margin=dict(l=56, r=8, t=28, b=96),
        legend=dict(orientation='h', x=0, y=1.02, yanchor='bottom'),
        xaxis=dict(range=[-0.7, len(names) - 0.3], tickvals=[place for place, _ in labels],
                   ticktext=[name for _, name in labels], tickangle=-40, showgrid=False,
                   zeroline=False, fixedrange=True, anchor='y2'),
        yaxis=dict(domain=[0.54, 1], title=dict(text='weight bits'), **ticks),
        yaxis2=dict(domain=[0, 0.46], title=dict(text='input bits'), **ticks),
        shapes=part_shapes(bands)))


def sensitivity_figure(table: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, Any]:
    """Draws what each layer alone loses at each of its widths; what is not positive stays empty.

    Args:
        table: Losses by layer and widths, as ``WidthTable.to_json`` has them.
        unit: What the losses are.
    """
    free = {name: row for name, row in table.items() if len(row) > 1}
    columns = sorted({text for row in free.values() for text in row}, key=Widths.read)
    return heat_map(list(free), columns, [[row.get(column) for column in columns]
                                          for row in free.values()], unit, logarithmic=True)


def front_figure(front: Sequence[Mapping[str, float]], plans: Sequence[Mapping[str, Any]],
                 cost: str, chosen: int | None = None) -> dict[str, Any]:
    """Draws the loss of plans over their cost.

    Args:
        front: Of the integer program: ``predicted`` and costs, in any order; empty where losses of
            layers are in other units than those of plans.
        plans: Those that were looked at more closely: ``name``, ``costs``, ``predicted``,
            ``whole`` and ``trial``, of which the last two may be ``None``.
        cost: Which of the costs; a key of ``UNITS``.
        chosen: Number of the plan that was taken.
    """
    line = sorted((cost_value(cost, point[cost]), point['predicted']) for point in front)
    hover = dict(hovertemplate='%{customdata}<extra></extra>')
    traces = [] if not line else [dict(
        type='scatter', mode='lines+markers', name='front, losses of layers added up',
        x=[x for x, _ in line], y=[positive(y) for _, y in line],
        marker=dict(color='@plain', size=5), line=dict(color='@plain', width=1.5),
        customdata=[f'{UNITS[cost]} {x:.4g}<br>loss {y:.3g}' for x, y in line], **hover)]
    kinds = [('mixed, measured', '@ours', 'circle', False),
             ('uniform, measured', '@warn', 'diamond', True)]
    for title, colour, symbol, uniform in kinds:
        mine = [plan for plan in plans if is_uniform(plan) == uniform]
        if not mine:
            continue
        traces.append(dict(
            type='scatter', mode='markers+text', name=title, textposition='top center',
            x=[cost_value(cost, plan['costs'][cost]) for plan in mine],
            y=[positive(measured_loss(plan)) for plan in mine],
            text=[str(plan['name']).removeprefix('uniform ') for plan in mine],
            marker=dict(color=colour, symbol=symbol, size=10), cliponaxis=False,
            customdata=[plan_hover(plan, cost) for plan in mine], **hover))
    if chosen is not None:
        plan = plans[chosen]
        traces.append(dict(
            type='scatter', mode='markers', name='taken', hoverinfo='skip',
            x=[cost_value(cost, plan['costs'][cost])], y=[positive(measured_loss(plan))],
            marker=dict(color='@text', symbol='circle-open', size=19, line=dict(width=2))))
    return dict(data=traces, layout=dict(
        height=420, margin=dict(l=72, r=16, t=56, b=52), hovermode='closest',
        legend=dict(orientation='h', x=0, y=1.02, yanchor='bottom'),
        xaxis=dict(title=dict(text=UNITS[cost]), fixedrange=True, zeroline=False),
        yaxis=dict(type='log', title=dict(text='loss'), fixedrange=True, exponentformat='power',
                   dtick=1)))


def is_uniform(plan: Mapping[str, Any]) -> bool:
    """Whether a plan gives all layers the same, where it is not fixed."""
    return str(plan['name']).startswith('uniform')


def measured_loss(plan: Mapping[str, Any]) -> float:
    """The truest loss that is known of a plan: calibrated, whole, else added up."""
    trial = plan.get('trial')
    if trial is not None:
        return float(trial['loss'])
    return float(plan['predicted'] if plan.get('whole') is None else plan['whole'])


def plan_hover(plan: Mapping[str, Any], cost: str) -> str:
    """What is told of a plan under the pointer."""
    trial = plan.get('trial')
    lines = [f"<b>{plan['name']}</b>", f"{UNITS[cost]} {cost_value(cost, plan['costs'][cost]):.4g}",
             f"loss added up {plan['predicted']:.3g}"]
    if plan.get('whole') is not None:
        lines.append(f"all layers at once {plan['whole']:.3g}")
    if trial is not None:
        lines.append(f"calibrated {trial['loss']:.3g}")
        if trial.get('drop') is not None:
            lines.append(f"drop {trial['drop']:.2f} points")
    return '<br>'.join(lines)


def positive(value: float) -> float | None:
    """A value on a logarithmic axis; ``None`` where it has no place there."""
    return value if value > 0 else None
