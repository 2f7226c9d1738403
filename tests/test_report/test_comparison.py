"""Runs stand beside each other with their own figures."""

import csv
import io

import pytest

from mmbitsplit.report.comparison import (
    COLUMNS,
    comparison_csv,
    comparison_markdown,
    comparison_page,
    comparison_rows,
    differing_widths,
)
from mmbitsplit.report.tables import MEAN_BITS, RELATIVE_ERROR


@pytest.fixture
def rows(results, layer):
    layers = {'layers': [layer('a', error=0.1), layer('b', error=0.3), layer('c', error=0.2)]}
    other = results(weight_bits=8, float={'accuracy/top1': 90.0},
                    quantized={'accuracy/top1': 89.5}, drop={'accuracy/top1': 0.5})
    return comparison_rows('four', results(), layers) + comparison_rows('eight', other)


def test_rows_tell_metric_size_and_worst_layer(rows):
    four, eight = rows
    assert set(four) == set(COLUMNS) == set(eight)
    assert (four['run'], four['bits'], four['worst_layer'], four['worst_error']) == (
        'four', 'W4A8', 'b', 0.3)
    assert four['float'] == pytest.approx(64.5) and four['drop'] == pytest.approx(1.1)
    assert (eight['metric'], eight['drop'], eight['worst_layer']) == ('accuracy/top1', 0.5, None)


def test_csv_reads_back_unrounded(rows):
    again = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert len(again) == 2
    for line, row in zip(again, rows):
        assert {name: '' if value is None else str(value) for name, value in row.items()} == line


def test_markdown_has_a_line_a_row(rows):
    header, rule, *lines = comparison_markdown(rows).split('\n')
    assert len(lines) == 2 and all('| four' in lines[0] and '| eight' in lines[1] for _ in '1')
    assert header.count('|') == rule.count('|') == lines[0].count('|') == len(COLUMNS) + 1


def test_the_page_has_table_and_figure(rows, read_page):
    pytest.importorskip('plotly')
    read = read_page(comparison_page(rows))
    assert {'four', 'eight', '64.50', '89.50'} <= set(read.text) and read.figures == ['runs']


def test_long_names_may_be_broken_and_errors_are_explained(rows):
    pytest.importorskip('plotly')
    page = comparison_page(rows)
    assert page.count('<td class="path">') == 2 * len(rows)  # config, worst layer
    assert RELATIVE_ERROR in page.replace('&#39;', "'")


def test_layers_whose_widths_differ_are_a_table_where_a_run_has_several(results, layer, read_page):
    pytest.importorskip('plotly')
    usual = {'layers': [layer('a'), layer('b'), layer('c')], 'kept_float': []}
    planned = {'layers': [layer('a', weight_bits=2), layer('b'), layer('d')],
               'kept_float': [{'name': 'c'}]}
    widths = {'mean': 3.0, 'min': 2, 'max': 4}
    mixed = results(bits={'weight': widths, 'activation': None, 'uniform': False})
    assert differing_widths({'one': (results(), usual), 'two': (results(), planned)}) == []
    found = differing_widths({'one': (results(), usual), 'two': (mixed, planned)})
    assert found == [['a', 'W4A8', 'W2A8'], ['c', 'W4A8', 'float']]  # d is of another model
    rows = comparison_rows('one', results(), usual) + comparison_rows('two', mixed, planned)
    text = comparison_markdown(rows, found)
    assert '| layer | one  | two   |' in text and MEAN_BITS in text
    page = read_page(comparison_page(rows, found))
    assert {'Layers whose widths differ', 'W2A8', 'W3.0 (2-4) A32'} <= set(page.text)
    assert MEAN_BITS in ' '.join(page.text)
