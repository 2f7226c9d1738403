"""Means, deviations and the order of rows; what must not be averaged is refused."""

import statistics

import pytest

from bench.paper import summarise
from bench.paper.summary import Figure, headlines_of, metrics_of


def test_mean_and_sample_deviation_over_seeds(make_run):
    values = [60.0, 61.0, 63.5]
    row, = summarise([make_run(value, seed=seed) for seed, value in enumerate(values)])
    figure = row.figures['accuracy/top1']
    assert figure == Figure(statistics.mean(values), statistics.stdev(values), 3)
    assert str(figure) == '61.50 ± 1.80'
    assert row.float_figures['accuracy/top1'] == 70.0 and row.seconds == 12.0


def test_one_seed_has_no_deviation(make_run):
    row, = summarise([make_run(60.0)])
    assert row.figures['accuracy/top1'].std is None
    assert str(row.figures['accuracy/top1']) == '60.00'


def test_ap_is_in_points(make_run):
    metrics = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_s': 0.1, 'coco/segm_mAP': 0.2,
               'coco/bbox_mAP_l': -1.0, 'coco/other': 1.0}
    row, = summarise([make_run(1.0, model='retinanet', float=metrics, quantized=metrics)])
    assert row.figures['coco/bbox_mAP'].mean == 25.0
    assert 'coco/bbox_mAP_l' not in row.figures  # no object of that size
    assert metrics_of([row]) == ['coco/bbox_mAP', 'coco/bbox_mAP_s', 'coco/segm_mAP']
    assert headlines_of([row]) == ['coco/bbox_mAP', 'coco/segm_mAP']


def test_the_papers_numbers_stand_only_where_model_and_part_match(make_run):
    same, = summarise([make_run(method='bitsplit_published')])
    assert same.paper == {'accuracy/top1': 67.56, 'accuracy/top5': 87.76}
    assert same.paper_float['accuracy/top1'] == 69.76
    for change in (dict(model='resnet20'), dict(method='bitsplit'), dict(bits=(2, 4)),
                   dict(scope='backbone')):
        row, = summarise([make_run(**{'method': 'bitsplit_published', **change})])
        assert row.paper == {}


def test_rows_come_in_the_order_of_the_table(make_run):
    runs = [make_run(method=method, bits=bits, model=model)
            for model in ('vgg16_bn', 'resnet18') for bits in ((3, 3), (8, 8))
            for method in ('bitsplit', 'tflite')]
    rows = summarise(runs)
    assert [row.model for row in rows] == ['resnet18'] * 4 + ['vgg16_bn'] * 4
    assert [row.bits.weight for row in rows[:4]] == [8, 8, 3, 3]
    assert [row.method for row in rows[:2]] == ['tflite', 'bitsplit']
    assert summarise(runs[::-1]) == rows


def test_failed_seeds_are_counted_and_not_averaged(make_run):
    row, = summarise([make_run(60.0), make_run(None, seed=1)])
    assert row.figures['accuracy/top1'].count == 1
    assert row.errors == ('ValueError: it broke',)
    row, = summarise([make_run(None)])
    assert row.figures == {} and row.float_figures == {} and row.seconds is None


def test_runs_of_different_float_models_are_not_averaged(make_run):
    other = make_run(60.0, seed=1, float={'accuracy/top1': 71.0})
    with pytest.raises(ValueError, match='float figures of resnet18 differ'):
        summarise([make_run(60.0), other])


def test_the_same_cell_twice_is_refused(make_run):
    with pytest.raises(ValueError, match='two runs are of the same cell'):
        summarise([make_run(60.0), make_run(61.0)])


def test_a_run_without_a_cell_is_refused(make_run):
    run = make_run(60.0)
    del run['cell']
    with pytest.raises(ValueError, match="belongs to no table's cell"):
        summarise([run])
