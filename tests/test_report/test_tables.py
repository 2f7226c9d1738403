"""Tables line up and hold the right figures."""

import pytest

from mmbitsplit.report import results_rows, results_text, text_table
from mmbitsplit.report.tables import MEAN_BITS


def results(**changes):
    return {'config': 'configs/a.py', 'weight_bits': 4, 'activation_bits': 8,
            'float': {'coco/bbox_mAP': 0.645, 'coco/bbox_mAP_50': 0.9, 'coco/segm_mAP': 0.5},
            'quantized': {'coco/bbox_mAP': 0.634, 'coco/bbox_mAP_50': 0.8},
            'drop': {'coco/bbox_mAP': 0.011},
            'size_bytes': {'float': 7_180_000, 'quantized_checkpoint': 1_020_000},
            'seconds': {'calibration': 21.6}, **changes}


def test_rows_are_the_headline_metrics_in_points():
    first, second = results_rows(results())
    assert first == ['configs/a.py', 'W4A8', 'coco/bbox_mAP', '64.50', '63.40', '1.10', '7.18',
                     '1.02', '22']
    assert second[2:6] == ['coco/segm_mAP', '50.00', '-', '-']


def test_per_cent_metrics_are_points_already():
    metric = {'accuracy/top1': 93.25}
    row, = results_rows(results(float=metric, quantized=metric, drop={'accuracy/top1': 0.0}))
    assert row[3:6] == ['93.25', '93.25', '0.00']


@pytest.mark.parametrize('metrics, shown', [
    ({'b/other': 1.5, 'a/other': 2.5}, ['a/other', '2.50']), ({}, ['-', '-'])])
def test_other_metrics_and_none(metrics, shown):
    row, = results_rows(results(float=metrics))
    assert row[2:4] == shown


def test_weights_only_is_called_a32():
    assert results_rows(results(activation_bits=None))[0][1] == 'W4A32'


@pytest.mark.parametrize(('weight', 'activation', 'shown'), [
    ((4.3, 2, 8), (8.0, 8, 8), 'W4.3 (2-8) A8'), ((4.3, 2, 8), None, 'W4.3 (2-8) A32'),
    ((3.0, 3, 3), (8.0, 8, 8), 'W3A8'), ((3.0, 3, 3), (5.26, 4, 6), 'W3A5.3 (4-6)'),
    ((4.3, 2, 8), (5.2, 4, 6), 'W4.3 (2-8) A5.2 (4-6)')])
def test_several_widths_are_told_as_mean_and_range(weight, activation, shown):
    names = ('mean', 'min', 'max')
    bits = {'weight': dict(zip(names, weight)),
            'activation': activation and dict(zip(names, activation)), 'uniform': False}
    assert results_rows(results(bits=bits))[0][1] == shown
    assert (MEAN_BITS in results_text([results(), results(bits=bits)])) == ('(' in shown)
    uniform = results(bits={**bits, 'uniform': True})
    assert results_text([uniform]) == results_text([results()])  # as runs of before plans


def test_text_has_a_line_a_row_all_equally_long():
    text = results_text([results(), results(config='configs/a_much_longer_name.py')])
    header, rule, *lines = text.split('\n')
    assert len(lines) == 4 and len({len(line) for line in (header, rule, *lines)}) == 1
    assert {line.count('|') for line in (header, rule, *lines)} == {10}
    assert 'configs/a_much_longer_name.py' in lines[2]


def test_numbers_to_the_right_words_to_the_left():
    header, rule, one, two = text_table(['name', 'n'], [['a', '1'], ['bbbbbb', '-12.5']]) \
        .split('\n')
    assert one == '| a      |     1 |' and two == '| bbbbbb | -12.5 |'
    assert rule == '|--------|------:|'
    assert header == '| name   |     n |'


def test_a_missing_number_keeps_its_column_numeric():
    lines = text_table(['x'], [['10.5'], ['-']]).split('\n')
    assert lines[1].endswith(':|') and lines[3] == '|    - |'
