"""Figures are ones that plotly takes, and hold every layer, class and run."""

import math

import pytest

from mmbitsplit.report.layer_figures import bits_text, layers_figure, parts_of
from mmbitsplit.report.result_figures import (
    CLASSES_SHOWN,
    classes_figure,
    heat_map,
    runs_figure,
    sizes_figure,
)

NAMES = ['backbone.conv1', *(f'backbone.layer{stage}.{block}.conv{number}'
                             for stage in (1, 2, 3) for block in range(9) for number in (1, 2)),
         'neck.convs.0', 'head.cls', 'head.reg']


@pytest.fixture
def check(plain_figure):
    """Has plotly itself validate a figure."""
    graph = pytest.importorskip('plotly.graph_objects')

    def checked(figure):
        return graph.Figure(plain_figure({name: figure[name] for name in ('data', 'layout')}))
    return checked


def test_every_layer_has_its_bars(check, layer):
    layers = [layer(name) for name in NAMES]
    layers[3]['guard_taken'] = True
    layers[5]['error'] = 0.0  # nothing to see on a logarithmic axis
    layers[0].update(activation_bits=None, weight_bits=8)
    figure = check(layers_figure(layers))
    rounding, ours, guard, weight, inputs = figure.data
    for trace in figure.data:
        assert list(trace.x) == list(range(len(NAMES)))
        assert all(name in text for name, text in zip(NAMES, trace.customdata))
    assert rounding.y[4] == layers[4]['error_rounding'] and ours.y[4] == layers[4]['error']
    assert ours.y[3] is None and guard.y[3] == layers[3]['error'] and ours.y[5] is None
    assert weight.y[0] == 8 and inputs.y[0] is None and inputs.y[1] == 8
    low, high = figure.layout.yaxis.range
    values = [row[name] for row in layers for name in ('error', 'error_rounding') if row[name]]
    assert low < math.log10(min(values)) < math.log10(max(values)) < high


def test_wide_networks_scroll_instead_of_shrinking(layer):
    few, many = (layers_figure([layer(f'a.{n}') for n in range(count)])['least_width']
                 for count in (10, 200))
    assert few < 390 < many


def test_parts_are_prefixes_and_no_more_than_can_be_read():
    parts = parts_of(NAMES)
    assert all(name.startswith(part) for name, part in zip(NAMES, parts))
    assert parts[:2] == ['backbone.conv1', 'backbone.layer1'] and parts[-1] == 'head'
    assert len(set(parts)) <= 8
    assert parts_of(['conv']) == ['conv'] and parts_of([]) == []


def test_labels_on_the_axis_keep_their_distance(layer):
    figure = layers_figure([layer(name) for name in NAMES])
    places = figure['layout']['xaxis']['tickvals']
    assert all(right - left >= 2.5 for left, right in zip(places, places[1:]))


def test_a_network_of_one_layer(check, layer):
    check(layers_figure([layer('fc', error=0.0, error_rounding=0.0)]))


def test_bits_of_a_float_input(layer):
    assert bits_text(layer('a', activation_bits=None)) == 'W4A32'


def test_classes_keep_their_order_and_are_cut(check):
    rows = [(f'class {n}', 50.0, 40.0 + n / 10) for n in range(60)]
    figure = check(classes_figure(rows, 'AP'))
    lines, before, after = figure.data
    assert list(after.y) == [name for name, _, _ in rows[:CLASSES_SHOWN]] == list(before.y)
    assert list(after.x) == [value for _, _, value in rows[:CLASSES_SHOWN]]
    assert len(lines.x) == 3 * CLASSES_SHOWN


def test_sizes_and_runs_are_figures(check):
    figure = check(sizes_figure([('all', 50.0, 49.0), ('small', 20.0, 18.0)], 'AP'))
    assert [list(trace.y) for trace in figure.data] == [[50.0, 20.0], [49.0, 18.0]]
    rows = [{'run': run, 'metric': metric, 'drop': 1.0, 'quantized_mb': 2.0, 'float_mb': 14.0}
            for run in ('a', 'b') for metric in ('bbox', 'segm')]
    figure = check(runs_figure(rows))
    assert [list(trace.y) for trace in figure.data] == [
        ['a bbox', 'b bbox'], ['a segm', 'b segm'], ['a', 'b']]
    figure = check(runs_figure(rows[:1] + rows[2:3]))  # one metric a run needs no metric's name
    assert list(figure.data[0].y) == ['a', 'b']


@pytest.mark.parametrize('drops', [[0.7, -0.1], [0.7, 0.2], [-0.3, None], [0.0, 0.0]])
def test_figures_beside_the_bars_of_runs_have_room(drops):
    rows = [{'run': run, 'metric': 'bbox', 'drop': drop, 'quantized_mb': 2.0, 'float_mb': 14.0}
            for run, drop in zip('ab', drops)]
    low, high = runs_figure(rows)['layout']['xaxis']['range']
    known = [0.0, *(drop for drop in drops if drop is not None)]
    room = 0.15 * (high - low) * (max(known) > min(known))
    assert high >= max(known) + 0.8 * room
    assert low == 0 if min(known) == 0 else low <= min(known) - 0.8 * room


@pytest.mark.parametrize('logarithmic', [True, False])
def test_a_heat_map_has_a_field_a_layer_and_column(check, logarithmic):
    values = [[0.1, None], [float('nan'), 1e-7]]
    figure = check(heat_map(['first', 'second'], ['W2', 'W4'], values, 'error',
                            logarithmic=logarithmic))
    shown = figure.data[0].z
    assert shown[0][1] is None and shown[1][0] is None
    expected = [math.log10(0.1), math.log10(1e-7)] if logarithmic else [0.1, 1e-7]
    assert [shown[0][0], shown[1][1]] == pytest.approx(expected)
    assert list(figure.layout.yaxis.ticktext) == ['first', 'second']
