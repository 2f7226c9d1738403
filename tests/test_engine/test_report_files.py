"""A report is written whole, and whatever goes wrong with it harms no run."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmbitsplit.engine.results import report_files
from mmbitsplit.engine.results.evaluation_record import EvaluationRecord
from mmbitsplit.engine.results.report_files import (
    REPORT,
    REPORT_DATA,
    REPORT_ERROR,
    leave_report,
    load_record,
    report_data,
    save_record,
    write_page,
)

Image = pytest.importorskip('PIL.Image')
pytest.importorskip('plotly')
CLASSES = ('cat', 'dog')


def box(score: float, label: int = 0, left: float = 2.0) -> dict:
    return {'boxes': [[left, 2.0, left + 10, 12.0]], 'scores': [score], 'labels': [label],
            'masks': None, 'size': [20, 30]}


def answer(label: int, score: float, truth: int = 0) -> dict:
    return {'labels': [label, 1 - label], 'scores': [score, 1 - score], 'truth': truth}


@pytest.fixture
def image(tmp_path):
    def make(name: str) -> str:
        Image.new('RGB', (30, 20), '#306090').save(tmp_path / name)
        return str(tmp_path / name)
    return make


@pytest.fixture
def run():
    """What quantizing left, as far as the report looks at it."""
    layer = SimpleNamespace(name='conv', input_ranges={
        'num_channels': 1, 'channel': [0], 'low': [0.0], 'low_tail': [0.0], 'high_tail': [1.0],
        'high': [2.0], 'clip_low': None, 'clip_high': None})
    module = SimpleNamespace(num_bits=2, codes=torch.tensor([[-1, 0, 1, 1]], dtype=torch.int8))
    return SimpleNamespace(report=SimpleNamespace(layers=[layer]),
                           prepared=SimpleNamespace(layers={'conv': module}, embeddings={}))


@pytest.fixture
def work_dir(tmp_path):
    """Work directory of a run that is finished but for its report."""
    path = tmp_path / 'work'
    path.mkdir()
    metrics = {'accuracy/top1': 90.0}
    (path / 'results.json').write_text(json.dumps({
        'config': 'a.py', 'method': {'type': 'BitSplit'}, 'weight_bits': 4, 'activation_bits': 8,
        'float': metrics, 'quantized': metrics, 'drop': {'accuracy/top1': 0.0},
        'size_bytes': {'float': 8, 'quantized_checkpoint': 2},
        'seconds': {'calibration': 1.0, 'solve': 0.5}, 'peak_rss_bytes': 1,
        'calibration': {'image_ids': [1], 'seed': 0}, 'versions': {}}))
    (path / 'layers.json').write_text(json.dumps({'layers': [{
        'name': 'conv', 'kind': 'conv2d', 'shape': [1, 4], 'role': 'inner', 'weight_bits': 2,
        'activation_bits': 8, 'activation_mode': 'ecaq', 'activation_symmetry': 'signed',
        'strength': 1.0, 'error_rounding': 0.2, 'error': 0.1, 'guard_taken': False, 'calls': 1,
        'rows': 4, 'seconds': 0.1, 'notes': []}], 'kept_float': []}))
    return path


def records(kind: str, before: dict, after: dict, **changes) -> list[EvaluationRecord]:
    return [EvaluationRecord(kind, images, len(images), **changes) for images in (before, after)]


def test_layers_have_ranges_and_counts(run):
    data = report_data(run, *records('detection', {}, {}), CLASSES)
    assert data['layers']['conv']['histogram'] == [1, 1, 2]
    assert data['layers']['conv']['ranges']['high'] == [2.0]
    assert data['pictures'] == {} and data['problems'] == []


def test_codes_of_several_widths_are_counted_at_each(run):
    codes = torch.tensor([[-8, -1, 0, 7]], dtype=torch.int8)
    narrow = SimpleNamespace(num_bits=2, codes=codes >> 2)
    run.prepared.layers['conv'] = SimpleNamespace(several=True, solution=lambda: SimpleNamespace(
        num_bits=4, codes=codes, narrower=(narrow,), nesting='floor'))
    found = report_data(run, *records('detection', {}, {}), CLASSES)['layers']['conv']
    four = [int(code in (-8, -1, 0, 7)) for code in range(-8, 8)]
    assert found['histograms'] == {'2': [1, 1, 1, 1], '4': four}
    assert found['histogram'] == four


def test_the_most_changed_images_come_first(run, image):
    before = {image('same.png'): box(0.9), image('lost.png'): box(0.9), image('less.png'): box(0.9)}
    after = dict(zip(before, (box(0.9), {**box(0.9), 'boxes': [], 'scores': [], 'labels': []},
                              box(0.6))))
    pictures = report_data(run, *records('detection', before, after), CLASSES)['pictures']
    assert [item['name'] for item in pictures['items']] == ['lost.png', 'less.png']
    assert [item['change'] for item in pictures['items']] == pytest.approx([0.9, 0.09])
    assert [(item['lost'], item['new']) for item in pictures['items']] == [(1, 0), (0, 0)]
    assert pictures['items'][0]['float'] != pictures['items'][0]['quantized']
    assert (pictures['watched'], pictures['total']) == (3, 3)


def test_precision_by_class_is_paired(run):
    sizes = {'all': 0.5, 'small': None, 'medium': 0.4, 'large': 0.6}
    before, after = records('detection', {}, {})
    before.precision = {'bbox': {'cat': sizes, 'dog': dict.fromkeys(sizes)}}
    after.precision = {'bbox': {'cat': {**sizes, 'all': 0.3}, 'dog': dict.fromkeys(sizes)}}
    cat, dog = report_data(run, before, after, CLASSES)['classes']['bbox']
    assert cat == {'class': 'cat', 'float': 0.5, 'quantized': 0.3,
                   'sizes': {'medium': (0.4, 0.4), 'large': (0.6, 0.6)}}
    assert dog == {'class': 'dog', 'float': None, 'quantized': None, 'sizes': {}}


def test_classifiers_have_accuracy_and_flips(run, image):
    paths = [image(f'{number}.png') for number in range(3)]
    before = dict(zip(paths, (answer(0, 0.9), answer(0, 0.6), answer(1, 0.9, 1))))
    after = dict(zip(paths, (answer(0, 0.6), answer(1, 0.6), answer(1, 0.9, 1))))
    data = report_data(run, *records('classification', before, after), CLASSES)
    assert data['classes']['accuracy'] == [
        {'class': 'cat', 'float': 1.0, 'quantized': 0.5, 'images': 2},
        {'class': 'dog', 'float': 1.0, 'quantized': 1.0, 'images': 1}]
    first = data['pictures']['items'][0]
    assert first['name'] == '1.png' and first['answers'] == {'float': 'cat (0.60)',
                                                             'quantized': 'dog (0.60)'}
    assert first['right'] == {'float': True, 'quantized': False} and first['truth'] == 'cat'


def test_a_missing_image_is_said_and_the_others_are_drawn(run, image, tmp_path):
    before = {image('there.png'): box(0.9), str(tmp_path / 'gone.png'): box(0.9)}
    after = {path: box(0.4) for path in before}
    data = report_data(run, *records('detection', before, after), CLASSES)
    assert [item['name'] for item in data['pictures']['items']] == ['there.png']
    assert len(data['problems']) == 1 and 'gone.png' in data['problems'][0]


def test_a_float_evaluation_that_is_lost_is_said(run):
    data = report_data(run, None, EvaluationRecord('detection'), CLASSES)
    assert 'did not evaluate' in data['problems'][0] and data['layers']['conv']['histogram']


def test_page_and_data_are_left(run, work_dir):
    assert leave_report(work_dir, run, *records('detection', {}, {}), CLASSES)
    assert {path.name for path in work_dir.iterdir()} == {
        REPORT, REPORT_DATA, 'results.json', 'layers.json'}
    first = (work_dir / REPORT).read_bytes()
    (work_dir / REPORT).unlink()
    assert write_page(work_dir).read_bytes() == first  # made again from the files alone


@pytest.mark.parametrize('part', ['report_data', 'write_page'])
def test_a_failure_is_kept_and_mended_later(run, work_dir, monkeypatch, part):
    def broken(*args):
        raise RuntimeError('no report today')
    with monkeypatch.context() as patch:
        patch.setattr(report_files, part, broken)
        assert not leave_report(work_dir, run, *records('detection', {}, {}), CLASSES)
    assert 'no report today' in (work_dir / REPORT_ERROR).read_text()
    assert not (work_dir / REPORT).exists()
    write_page(work_dir)
    assert (work_dir / REPORT).exists() and not (work_dir / REPORT_ERROR).exists()


def test_a_full_disk_harms_nothing(run, work_dir, monkeypatch):
    def full(path, text):
        raise ValueError(f'{path} cannot be written: disk full.')
    monkeypatch.setattr(report_files, 'write_text', full)
    assert not leave_report(work_dir, run, *records('detection', {}, {}), CLASSES)


def test_a_directory_without_a_run_is_said(tmp_path, work_dir):
    with pytest.raises(ValueError, match='results.json.*finished'):
        write_page(tmp_path)
    (work_dir / REPORT_DATA).write_text('{"format": 99}')
    with pytest.raises(ValueError, match='format 99'):
        write_page(work_dir)


def test_records_outlive_an_interruption(tmp_path):
    record = EvaluationRecord('detection', {'a.png': box(0.5)}, 7, {'bbox': {}}, ['a problem'])
    save_record(tmp_path / 'record.json', record)
    assert load_record(tmp_path / 'record.json') == record
    (tmp_path / 'record.json').write_text('{"kind": ')
    assert load_record(tmp_path / 'record.json') is None
    assert load_record(tmp_path / 'nothing.json') is None
