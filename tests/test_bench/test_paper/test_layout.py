"""Tables hold each figure at its place, once; checks say what does not hold."""

import csv
import io

import pytest

from bench.paper import (
    TABLES,
    bits_figure,
    csv_text,
    full_table,
    paper_page,
    pivot_table,
    summarise,
    verdicts,
)


def cells(table):
    """Header and rows of a Markdown table."""
    header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')]
                        for line in table.split('\n')]
    return header, rows


@pytest.fixture
def rows(make_run):
    """Three methods at two widths, one of them with seeds."""
    figures = {(8, 'tflite'): [69.0], (8, 'bitsplit_published'): [69.5],
               (8, 'bitsplit'): [69.6, 69.8], (4, 'tflite'): [20.0],
               (4, 'bitsplit_published'): [67.0], (4, 'bitsplit'): [67.0, 68.0]}
    return summarise([make_run(value, method=method, bits=(bits, bits), seed=seed)
                      for (bits, method), values in figures.items()
                      for seed, value in enumerate(values)])


def test_pivot_has_a_row_a_width_and_float_once(rows):
    header, lines = cells(pivot_table(rows))
    assert header == ['Model', 'Bits', 'Float', 'TF-Lite min/max', 'Bit-split as published',
                      'mmbitsplit default', 'Paper: float', 'Paper: TF-Lite min/max',
                      'Paper: Bit-split as published']
    assert lines[1] == ['ResNet-18', 'W4A4', '70.00', '20.00', '67.00', '67.50 ± 0.71', '69.76',
                        '18.84', '67.56']
    assert [line[1] for line in lines] == ['W8A8', 'W4A4']


def test_without_matching_data_there_are_no_paper_columns(make_run):
    header, lines = cells(pivot_table(summarise([make_run(60.0, model='resnet20')])))
    assert header == ['Model', 'Bits', 'Float', 'mmbitsplit default']
    assert lines == [['CIFAR ResNet-20', 'W4A4', '70.00', '60.00']]


def test_table_1_puts_quantized_activations_beside_float_ones(make_run):
    rows = summarise([
        make_run(66.0, table=1, method='bitsplit_published', bits=(3, None)),
        make_run(65.0, table=1, method='bitsplit_published_a8', bits=(3, 8))])
    _, (line,) = cells(pivot_table(rows))
    assert line[1:5] == ['W3', '70.00', '66.00', '65.00'] and line[-2:] == ['66.76', '66.75']


def test_full_table_has_all_metrics_and_the_float_row_once(rows):
    header, lines = cells(full_table(rows))
    assert header[:6] == ['Bits', 'Quantized part', 'Method', 'Runs', 'Top-1', 'Top-5']
    assert lines[0][:6] == ['float', '-', '-', '-', '70.00', '90.00']
    assert [line[0] for line in lines].count('float') == 1
    assert lines[-1] == ['W4A4', 'all', 'mmbitsplit default', '2', '67.50 ± 0.71', '80.00 ± 0.00',
                         '-', '-', '12']


def test_parts_of_a_detector_are_told_apart(make_run):
    metrics = {f'coco/bbox_mAP{size}': 0.5 for size in ('', '_50', '_75', '_s', '_m', '_l')}
    rows = summarise([make_run(1.0, table=5, model='retinanet_r50', bits=(4, 8), scope=scope,
                               method='bitsplit_published', float=metrics, quantized=metrics)
                      for scope in ('all', 'backbone+neck')])
    header, lines = cells(pivot_table(rows))
    assert header[:3] == ['Model', 'Quantized part', 'Bits']
    assert [line[1] for line in lines] == ['all', 'backbone+neck']
    assert [line[-1] for line in lines] == ['34.40', '-']  # the paper quantized all layers
    header, lines = cells(full_table(rows))
    assert header[4:10] == ['Box AP', 'Box AP50', 'Box AP75', 'Box APs', 'Box APm', 'Box APl']
    assert header[10:13] == ['Paper: Box AP', 'Paper: Box AP50', 'Paper: Box AP75']


def test_csv_is_unrounded_and_complete(rows):
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(found) == 12
    last = next(line for line in found if line['weight_bits'] == '4'
                and line['method'] == 'bitsplit' and line['metric'] == 'accuracy/top1')
    assert float(last['std']) == pytest.approx(0.5 ** 0.5) and last['runs'] == '2'
    published = next(line for line in found if line['method'] == 'tflite'
                     and line['weight_bits'] == '4' and line['metric'] == 'accuracy/top1')
    assert (published['paper'], published['std']) == ('18.84', '')


def test_failures_are_shown(make_run):
    runs = [make_run(60.0), make_run(None, seed=1), make_run(None, method='tflite')]
    text = paper_page(TABLES[3], summarise(runs))
    _, (line,) = cells(pivot_table(summarise(runs)))
    assert line[3:5] == ['failed', '60.00 (1 failed)']
    assert '## Failed' in text and text.count('ValueError: it broke') == 2


def test_the_page_says_how_each_method_was_set_up(rows):
    text = paper_page(TABLES[3], rows, left=2)
    assert 'Interrupted: 2 of the cells' in text
    assert "TF-Lite min/max (`tflite`): method `{'type': 'RoundToNearest'" in text


def test_checks_that_hold(rows):
    found = verdicts(rows)
    assert {verdict.holds for verdict in found} == {True}
    assert sum('below bit-split' in verdict.text for verdict in found) == 1  # at 4 bits only


@pytest.mark.parametrize('ours, theirs, holds', [
    ([60.0], [61.0], None), ([60.0, 60.2], [61.0, 61.2], False), ([60.0, 60.2], [60.2, 60.4], True),
    ([60.0], [60.0], True)])
def test_the_default_against_others(ours, theirs, holds, make_run):
    runs = [make_run(value, method=method, seed=seed)
            for method, values in (('bitsplit', ours), ('mse', theirs))
            for seed, value in enumerate(values)]
    verdict, = verdicts(summarise(runs))
    assert verdict.holds is holds
    assert str(verdict).startswith({True: 'holds', False: 'DOES NOT HOLD', None: 'open'}[holds])


def test_ecaq_against_one_scale_a_tensor_at_few_activation_bits(make_run):
    runs = [make_run(value, table=2, method=method, bits=(8, bits))
            for bits in (8, 3) for method, value in (('per_tensor', 65.0), ('ecaq', 66.0))]
    verdict, = verdicts(summarise(runs))
    assert verdict.holds and 'A3' in verdict.text and 'ECAQ' in verdict.text


def test_rounding_that_is_not_below_is_found(make_run):
    runs = [make_run(60.0, method='tflite'), make_run(60.0, method='bitsplit_published')]
    verdict, = verdicts(summarise(runs))
    assert verdict.holds is False


def test_the_plot_is_a_picture_of_all_models(rows, make_run, tmp_path):
    cv2 = pytest.importorskip('cv2')
    bits_figure(rows, str(tmp_path / 'one.png'))
    more = summarise([make_run(50.0, model='resnet20')]) + list(rows)
    bits_figure(more, str(tmp_path / 'two.png'))
    one, two = (cv2.imread(str(tmp_path / f'{name}.png')) for name in ('one', 'two'))
    assert two.shape[1] > 1.5 * one.shape[1] and one.std() > 10
    with pytest.raises(ValueError, match='no run has finished'):
        bits_figure(summarise([make_run(None)]), str(tmp_path / 'none.png'))
