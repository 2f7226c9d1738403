"""What a budget led to is on the page: widths, losses, the front, what each bit costs."""

import json

import pytest

from mmbitsplit.report.budget import misled, plan_page, plans_table, sentence, steps_table
from mmbitsplit.report.budget_figures import front_figure, sensitivity_figure, widths_figure
from mmbitsplit.report.page import unpack
from mmbitsplit.report.run_page import run_page
from mmbitsplit.structures import Widths, WidthTable

FIXED, FREE = 'stem.conv', ['stage.0.conv', 'stage.1.conv', 'stage.2.conv']


@pytest.fixture
def budget():
    """As ``budget.json`` has it: a fixed layer and three free ones, each larger than the last."""
    weights = dict(zip([FIXED, *FREE], (100, 1000, 2000, 4000)))
    choices = {FIXED: (8,), **dict.fromkeys(FREE, (2, 4, 8))}
    loss = {name: {f'W{bits}': 0.0 if bits == 8 else 8.0 ** -bits * 1e6 / weights[name]
                   for bits in widths} for name, widths in choices.items()}
    size = {name: {f'W{bits}': weights[name] * bits / 8 for bits in widths}
            for name, widths in choices.items()}
    mean = {name: {key: value * 8 / 7000 for key, value in row.items()} if len(row) > 1 else
            {'W8': 0.0} for name, row in size.items()}

    def plan(name, bits, whole=None, trial=None):
        widths = {FIXED: 'W8', **{layer: f'W{each}' for layer, each in zip(FREE, bits)}}
        costs = {'weight_bits': sum(mean[layer][own] for layer, own in widths.items()),
                 'bytes': sum(size[layer][own] for layer, own in widths.items())}
        predicted = 0.01 + sum(loss[layer][own] for layer, own in widths.items())
        return dict(name=name, widths=widths, costs=costs, predicted=predicted, whole=whole,
                    trial=trial)

    plans = [plan('mixed', (8, 4, 2), 5.0, dict(loss=9.0, payload=2600, metrics={}, drop=1.5,
                                                holds=None)),
             plan('uniform W4', (4, 4, 4), 12.0, dict(loss=12.0, payload=3600, metrics={},
                                                     drop=None, holds=None))]
    return dict(limits={'weight_bits': 4.0}, loss='kl', base=0.01, table=loss,
                costs={'weight_bits': mean, 'bytes': size}, plans=plans, chosen=0,
                front=[{'predicted': one['predicted'], **one['costs']} for one in (
                    plan('', bits) for bits in ((2, 2, 2), (4, 4, 2), (8, 8, 8)))],
                exchanges={'tried': 3, 'taken': 1}, status='optimal', unseen=True, max_drop=None,
                held=None)


@pytest.fixture
def check(plain_figure):
    graph = pytest.importorskip('plotly.graph_objects')
    return lambda figure: graph.Figure(plain_figure(
        {name: figure[name] for name in ('data', 'layout')}))


def test_bars_say_which_widths_were_chosen(check):
    widths = {FIXED: Widths(8, None), FREE[0]: Widths(2, 4), FREE[1]: Widths(4, 8)}
    bars = {trace.name: list(trace.y) for trace in check(widths_figure(widths, FREE)).data}
    assert bars == {'weights, chosen': [None, 2, 4], 'input, chosen': [None, 4, 8],
                    'weights, fixed': [8, None, None], 'input, fixed': [None] * 3}


def test_the_heat_map_has_a_row_a_free_layer(check, budget):
    trace, = check(sensitivity_figure(budget['table'], 'loss')).data
    assert list(trace.x) == ['W2', 'W4', 'W8'] and len(trace.z) == len(FREE)
    assert trace.z[0][0] == pytest.approx(1.1938, abs=1e-3)  # the logarithm of 1e3 / 64
    assert trace.z[0][2] is None  # nothing lost, nothing to colour


def test_the_front_has_plans_where_they_were_measured(check, budget):
    figure = check(front_figure(budget['front'], budget['plans'], 'bytes', 0))
    line, mixed, uniform, ring = figure.data
    assert list(line.x) == sorted(line.x) and len(line.x) == 3
    assert (mixed.x[0], mixed.y[0]) == (ring.x[0], ring.y[0]) == (3.1, 9.0)  # kB; calibrated
    assert list(uniform.text) == ['W4'] and uniform.y[0] == 12.0
    budget['plans'][0]['trial'] = None
    assert front_figure(budget['front'], budget['plans'], 'bytes')['data'][1]['y'] == [5.0]


def test_a_bit_more_and_a_bit_less_are_priced_by_hand(budget):
    plan = {name: Widths.read(text) for name, text in budget['plans'][0]['widths'].items()}
    table = steps_table(WidthTable.from_json(budget['table']),
                        WidthTable.from_json(budget['costs']['bytes']), plan)
    rows = {row[0]: row for row in table.rows}
    assert rows.keys() == set(FREE)
    # From 4 to 2 bits: 500 B less, and of the loss 500 / 64 more for 500 / 4096.
    middle = rows[FREE[1]]
    assert middle[6] == ('W2', 2)
    assert middle[7][1] == pytest.approx((500 / 64 - 500 / 4096) / 0.5)
    assert middle[4] == ('W8', 8) and middle[5][1] == pytest.approx(500 / 4096 / 1.0)
    assert rows[FREE[0]][4:6] == [('–', None)] * 2 and rows[FREE[2]][6:] == [('–', None)] * 2


def test_words_on_what_was_taken_and_how_far_the_sum_was(budget):
    text = sentence(budget)
    assert 'at most 4 bits a weight on average' in text and 'Taken: mixed' in text
    assert '2.6 kB (3.1 kB planned)' in text and '2 plans were calibrated' in text
    assert 'worse' in misled(budget['plans'][1]) and '12' in misled(budget['plans'][1])
    near = {**budget['plans'][1], 'predicted': 11.0}
    assert misled(near) == ''
    assert sentence({**budget, 'max_drop': 0.5, 'limits': {}}).startswith(
        'Asked for: a drop of at most 0.5 points.')
    table = plans_table(budget['plans'], 0)
    assert table.rows[0][0] == 'mixed (taken)' and table.header[-2] == 'drop, points'


def test_the_page_of_a_run_has_the_section_only_with_a_budget(budget, results, layer, read_page):
    pytest.importorskip('PIL')
    layers = {'layers': [layer(name) for name in (FIXED, *FREE)]}
    read = read_page(run_page(results(), layers, None, budget))
    assert {'budget-widths', 'budget-front', 'budget-sensitivity'} <= set(read.figures)
    figures = json.loads(unpack(read.scripts['page-data']))['figures']
    assert set(read.figures) == figures.keys()
    text = ' '.join(' '.join(read.text).split())
    assert 'Widths of 3 layers were chosen; the other 1' in text
    without = ' '.join(read_page(run_page(results(), layers, None)).text)
    assert 'Widths within the budget' not in without


def test_sums_of_estimates_are_not_compared_with_losses(budget, results, layer, read_page):
    pytest.importorskip('PIL')
    budget['sensitivity'] = 'fisher'
    layers = {'layers': [layer(name) for name in (FIXED, *FREE)]}
    read = read_page(run_page(results(), layers, None, budget))
    text = ' '.join(' '.join(read.text).split())
    assert 'in units of its own: output error weighted' in text
    assert 'add up' not in text and 'The line' not in text
    figures = json.loads(unpack(read.scripts['page-data']))['figures']
    assert not any('front' in trace['name'] for trace in figures['budget-front']['data'])


def test_the_page_of_several_budgets_shows_every_plan(budget, read_page):
    read = read_page(plan_page({**budget, 'chosen': None}, 'front of a_name'))
    figures = json.loads(unpack(read.scripts['page-data']))['figures']
    assert set(read.figures) == figures.keys() == {'front', 'widths', 'sensitivity'}
    assert figures['widths']['data'][0]['z'] == [[8, 4], [4, 4], [2, 4]]
    assert 'Kullback-Leibler' in ' '.join(read.text)
