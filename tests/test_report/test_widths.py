"""The page of a model of several widths: a slider, and what is shown at each of them."""

import json

import pytest

from mmbitsplit.report.page import unpack
from mmbitsplit.report.run_page import run_page
from mmbitsplit.report.widths import at_width, widths_section

pytest.importorskip('plotly')
pytest.importorskip('PIL')
WIDTHS = ((3, 3), (4, 4), (8, 8))


def errors(factor: float, of: str = 'layer', pairs=WIDTHS) -> list[dict]:
    return [{'weight_bits': weight, 'activation_bits': bits, 'error': factor * 10.0 ** -weight,
             'error_rounding': 2 * factor * 10.0 ** -weight, 'of': of} for weight, bits in pairs]


@pytest.fixture
def rows(layer):
    """A first layer of one width, and two of several."""
    return [layer('first', weight_bits=8, error=1e-6),
            layer('a', weight_bits=8, activation_bits=8, width_errors=errors(1.0)),
            layer('b', weight_bits=8, activation_bits=8, width_errors=errors(3.0))]


def evaluated(results) -> list[dict]:
    return [{'weight_bits': weight, 'activation_bits': bits, 'seconds': 1.0,
             'quantized': {'coco/bbox_mAP': 0.6 + weight / 1000},
             'drop': {'coco/bbox_mAP': 0.045 - weight / 1000}} for weight, bits in WIDTHS]


def test_every_width_has_its_metrics_errors_and_codes(rows, results, read_page):
    stored = {name: {'ranges': None, 'histogram': [4] * 255, 'histograms': {
        '3': [1, 2, 3], '4': [5, 6, 7], '8': [4] * 255}} for name in ('a', 'b')}
    page = run_page(results(widths=evaluated(results())), {'layers': rows}, {
        'format': 1, 'layers': stored, 'classes': {}, 'pictures': {}, 'problems': []})
    read = read_page(page)
    data = json.loads(unpack(read.scripts['page-data']))
    assert data['widths']['names'] == ['W3A3', 'W4A4', 'W8A8']
    assert data['widths']['said'][1] == 'coco/bbox_mAP 60.40, drop 4.10'
    assert read.figures == ['layers']
    drawn = {name: figure for name, figure in data['figures'].items()}
    assert list(drawn) == ['layers W3A3', 'layers W4A4', 'layers W8A8']
    assert [drawn[f'layers {name}']['data'][1]['y'] for name in data['widths']['names']] == [
        [1e-6, 1e-3, 3e-3], [1e-6, 1e-4, 3e-4], [1e-6, 1e-8, 3e-8]]
    assert len({str(figure['layout']['yaxis']['range']) for figure in drawn.values()}) == 1
    shown = data['layers']['b']['widths']
    assert [one['histogram'] for one in shown] == [[1, 2, 3], [5, 6, 7], [4] * 255]
    assert ['W3A3' in one['facts'] and 'error 0.003 ' in one['facts'] for one in shown] == [
        True, False, False]
    assert 'widths' not in data['layers']['first']
    assert 'evaluate-widths' not in page and 'bits in ONNX' not in page
    for figure in ('60.30', '60.40', '60.80', '3.00e-03'):
        assert figure in read.text


def test_without_an_evaluation_the_widest_has_figures_and_the_page_says_how_to_have_others(
        rows, results, read_page):
    read = read_page(run_page(results(), {'layers': rows}, None))
    text = ' '.join(read.text)
    assert '--evaluate-widths' in text
    section = widths_section(results(), rows)
    assert [line[1] for line in section['table'].rows] == ['–', '–', '63.40']
    assert section['said'] == ['', '', 'coco/bbox_mAP 63.40, drop 1.10']


def test_a_model_of_one_width_has_no_slider(results, layer, read_page):
    page = run_page(results(), {'layers': [layer('a')]}, None)
    assert widths_section(results(), [layer('a')]) is None
    assert 'id="width"' not in page
    assert list(json.loads(unpack(read_page(page).scripts['page-data']))['figures']) == ['layers']


@pytest.mark.parametrize('own, asked, wanted', [
    (WIDTHS, (4, 4), 1e-4), (WIDTHS, (5, 5), None),
    (((3, 8), (4, 8)), (3, 3), 1e-3),  # its input has one width
    (((4, 3), (4, 8)), (3, 8), 1e-4),  # its weight has
])
def test_a_layer_is_taken_at_the_width_of_the_model_as_far_as_it_has_it(own, asked, wanted, layer):
    row = layer('a', width_errors=errors(1.0, pairs=own))
    found = at_width(row, dict(zip(('weight_bits', 'activation_bits'), asked)))
    assert found['error'] == pytest.approx(row['error'] if wanted is None else wanted)


def test_errors_of_whole_units_are_called_so(rows, results, read_page):
    learned = [{**row, 'width_errors': errors(1.0, 'unit')} for row in rows[1:]]
    page = run_page(results(), {'layers': learned}, None)
    data = json.loads(unpack(read_page(page).scripts['page-data']))
    assert 'whole unit' in page
    assert "error of its unit's outputs 0.001 (before it was learned 0.002)" in \
        data['layers']['a']['widths'][0]['facts']
