"""The report holds every layer, class and picture, stays small, and says what it lacks."""

import json
import random

import pytest

from mmbitsplit.report.page import MOST_BYTES, unpack
from mmbitsplit.report.run_page import WITHOUT_DATA, run_page

pytest.importorskip('plotly')
pytest.importorskip('PIL')


def picture(number: int, size: int = 100) -> dict:
    text = ''.join(random.Random(number).choices('abcdefghijklmnop', k=size))
    uri = f'data:image/webp;base64,{text}'
    return {'name': f'image{number}.jpg', 'change': 1.5, 'lost': 2, 'new': 1,
            'counts': {'float': 5, 'quantized': 4}, 'float': uri, 'quantized': uri}


def pictures(items, kind='detection') -> dict:
    return {'kind': kind, 'watched': 10, 'total': 20, 'least_score': 0.3, 'items': items}


@pytest.fixture
def report(results, layer, ranges):
    """Makes a report of three layers; keywords replace parts of its data."""
    def make(names=('backbone.conv1', 'neck.<b>&', 'head.cls'), kept=(), **data):
        layers = [layer(name) for name in names]
        stored = {name: {'ranges': ranges(3, 7), 'histogram': [1, 2, 1]} for name in names}
        return run_page(results(), {'layers': layers, 'kept_float': list(kept)}, {
            'format': 1, 'layers': stored, 'classes': {}, 'pictures': {}, 'problems': [], **data})
    return make


def test_every_layer_is_in_the_table_the_choice_and_the_data(report, read_page):
    page = report()
    read = read_page(page)
    names = ['backbone.conv1', 'neck.<b>&', 'head.cls']
    assert read.links == names
    for name in names:
        assert read.text.count(name) >= 2  # an option and a cell
    data = json.loads(unpack(read.scripts['page-data']))
    assert list(data['layers']) == names and data['figures'].keys() == {'layers'}
    shown = data['layers']['head.cls']
    assert shown['histogram'] == [1, 2, 1] and len(shown['ranges']['channel']) == 3
    assert '3 of 7 channels' in shown['note']
    assert read.figures == ['layers']


def test_headline_and_size_are_told(report, read_page):
    text = ' '.join(read_page(report()).text)
    for figure in ('64.50', '63.40', '1.10', '7.18 MB', '1.02 MB', '7.0 times', '21.6 s',
                   'a_name: W4A8'):
        assert figure in text


def test_codes_are_told_by_width_and_as_onnx_stores_them(results, layer, read_page):
    layers = [layer('a', weight_bits=2, shape=[8, 1, 3, 3]), layer('b', weight_bits=2),
              layer('c', weight_bits=5)]
    text = read_page(run_page(results(), {'layers': layers}, None)).text
    cells = [cell for cell in text if cell.strip()]
    place = cells.index('bits in ONNX, int4') + 1
    # 9 codes of 2 bits take 3 bytes a channel, 36 take 9.
    assert cells[place:place + 12] == ['2', '2', '360', '0.1 kB', '8', '4',
                                       '5', '1', '288', '0.2 kB', '8', '8']


def test_figures_have_units_and_absent_ones_a_dash(report, read_page):
    read = read_page(report())
    text = ' '.join(read.text)
    assert text.count('metric, points of 100') == 2 and '-100.00' not in text
    place = read.text.index('coco/bbox_mAP_l')  # no object of that size
    assert read.text[place + 1:place + 4] == ['–', '–', '–']


def test_a_first_reader_is_told_what_a_relative_error_is(report, read_page):
    text = ' '.join(' '.join(read_page(report()).text).split())
    assert '0 is exact; 0.01 is a deviation of a tenth of the usual swing' in text


def test_largest_losers_come_first_and_sizes_are_drawn(report, read_page):
    rows = [{'class': name, 'float': 0.5, 'quantized': value, 'sizes': {'small': [0.4, 0.3]}}
            for name, value in (('best', 0.52), ('worst', 0.3), ('middle', 0.45))]
    rows.append({'class': 'absent', 'float': None, 'quantized': None, 'sizes': {}})
    read = read_page(report(classes={'bbox': rows}))
    data = json.loads(unpack(read.scripts['page-data']))
    assert data['figures']['classes-bbox']['data'][2]['y'] == ['worst', 'middle', 'best']
    assert data['figures']['sizes-bbox']['data'][0]['x'] == ['all', 'small', 'medium']
    text = ' '.join(read.text)
    assert text.index('worst') < text.index('middle') < text.index('best')
    assert '1 classes have nothing to be found' in text and 'absent' not in text


def test_pictures_stand_in_their_order(report, read_page):
    read = read_page(report(pictures=pictures([picture(2), picture(1)])))
    text = ' '.join(read.text)
    assert text.index('image2.jpg') < text.index('image1.jpg')
    assert len([source for source in read.sources if source.startswith('data:image')]) == 4
    assert 'the first 10 of 20 evaluated images' in ' '.join(text.split())


def test_classified_pictures_say_right_and_wrong(report, read_page):
    item = {'name': 'x.png', 'change': 0.4, 'image': 'data:image/webp;base64,AA',
            'answers': {'float': 'cat 0.90', 'quantized': 'dog 0.60'},
            'right': {'float': True, 'quantized': False}, 'truth': 'cat'}
    page = report(pictures=pictures([item], 'classification'),
                  classes={'accuracy': [{'class': 'cat', 'float': 0.9, 'quantized': 0.8}]})
    read = read_page(page)
    assert {'cat 0.90', 'dog 0.60'} <= set(read.text)
    assert '<b class="good">cat' in page and '<b class="bad">dog' in page
    assert 'Accuracy by class' in read.text


def test_models_that_say_the_same_are_told(report, read_page):
    assert 'both models say the same' in ' '.join(read_page(report(pictures=pictures([]))).text)


def test_too_many_pictures_are_left_out_from_the_end(report, read_page):
    items = [picture(number, 400_000) for number in range(8)]
    page = report(pictures=pictures(items))
    assert len(page.encode()) <= MOST_BYTES
    text = ' '.join(read_page(page).text)
    assert 'image0.jpg' in text and 'image7.jpg' not in text


def test_hundreds_of_layers_stay_small(report, ranges, read_page):
    names = [f'backbone.layer{number}.conv' for number in range(300)]
    chance = random.Random(0)
    stored = {name: {'ranges': {key: value if not isinstance(value, list) else
                                [chance.gauss(0, 1) for _ in range(256)]
                                for key, value in ranges().items()},
                     'histogram': list(range(255))} for name in names}
    page = report(names=names, layers=stored)
    assert len(page.encode()) <= MOST_BYTES and read_page(page).links == names


def test_what_went_wrong_and_what_stays_float_is_said(report, read_page):
    kept = [{'name': 'neck.norm', 'kind': 'GroupNorm', 'reason': 'not <supported>',
             'num_weights': 10, 'share': 0.25}]
    text = ' '.join(read_page(report(kept=kept, problems=['could <not> be read'])).text)
    assert 'could <not> be read' in text and 'not <supported>' in text and '25.00 %' in text


def test_steps_that_pick_by_values_of_layers_are_listed(results, layer, read_page):
    step = {'operation': 'topk', 'module': '', 'method': 'pre_<decoder>', 'reaches': ['a', 'b']}
    layers = {'layers': [layer('a')], 'kept_float': [], 'warnings': ['The forward is <random>'],
              'selections': [step, {**step, 'module': 'neck.0', 'reaches': ['c']}]}
    text = read_page(run_page(results(), layers, None)).text
    assert {'topk in pre_<decoder>', 'a, b', 'topk in neck.0.pre_<decoder>', 'c',
            'The forward is <random>'} <= set(text)


def test_a_run_without_data_has_a_page_that_says_so(results, layer, read_page):
    page = run_page(results(), {'layers': [layer('conv')], 'kept_float': []}, None)
    read = read_page(page)
    assert WITHOUT_DATA in read.text and read.links == ['conv']


def test_metrics_that_nobody_knows_and_no_layers(results, read_page):
    values = {'float': {'x/score': 3.0}, 'quantized': {'x/score': 2.0}, 'drop': {'x/score': 1.0}}
    read = read_page(run_page(results(**values), {'layers': [], 'kept_float': []}, None))
    assert {'x/score', '3.00', '2.00', '1.00'} <= set(read.text)
    read_page(run_page(results(float={}, quantized={}, drop={}),
                       {'layers': [], 'kept_float': []}, None))


def test_what_tuning_gained_is_told(results, layer, read_page):
    stage = {'type': 'OutputTuning', 'steps': 200, 'best_step': 60, 'kept': 'tuned',
             'held_out_before': 0.25, 'held_out_after': 0.125, 'fit_before': 0.5,
             'fit_after': 0.0625, 'learned': {'scales': 53, 'output_scales': 0, 'biases': 7},
             'seconds': 12.34}
    layers = {'layers': [layer('conv')], 'kept_float': []}
    stages = [stage, {**stage, 'kept': 'start'},
              {**stage, 'type': 'NormReestimation', 'steps': 9, 'best_step': 8, 'layers': 8}]
    text = read_page(run_page(results(tuning=stages), layers, None)).text
    assert {'step 60 of 200', '0.25 to 0.125', '0.5 to 0.0625', '53 scales, 7 biases',
            '12.3 s', 'the start, no better one in 200 steps', '8 of 9 layers'} <= set(text)
    assert 'Tuning of the whole model' not in read_page(run_page(results(), layers, None)).text
