"""Precision by class agrees with the averages that COCOeval itself reports."""

import contextlib
import io
import random

import numpy as np
import pytest

from mmbitsplit.report.average_precision import SIZES, precision_by_class

CLASSES = ('cat', 'dog', 'never seen')


@pytest.fixture(scope='module')
def evaluated():
    """An evaluation of wobbling boxes of two classes in three sizes."""
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval

    chance = random.Random(0)
    truth, found = [], []
    for number in range(60):
        side = chance.choice((20, 60, 150))
        box = [chance.uniform(0, 100), chance.uniform(0, 100), side, side]
        annotation = dict(id=number + 1, image_id=number % 10, category_id=number % 2, bbox=box,
                          area=side * side, iscrowd=0)
        truth.append(annotation)
        found.append(dict(image_id=number % 10, category_id=number % 2, score=chance.random(),
                          bbox=[value + chance.uniform(-4, 4) for value in box]))
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = dict(images=[dict(id=n, height=300, width=300) for n in range(10)],
                           annotations=truth, categories=[
                               dict(id=n, name=name) for n, name in enumerate(CLASSES)])
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_mean_over_classes_is_cocos_own_average(evaluated):
    rows = precision_by_class(evaluated.eval['precision'], CLASSES)
    for place, size in ((0, 'all'), (3, 'small'), (4, 'medium'), (5, 'large')):
        values = [row[size] for row in rows.values() if row[size] is not None]
        assert 0 < np.mean(values) < 1
        assert np.mean(values) == pytest.approx(evaluated.stats[place])


def test_a_class_without_objects_has_no_precision(evaluated):
    rows = precision_by_class(evaluated.eval['precision'], CLASSES)
    assert rows['never seen'] == dict.fromkeys(SIZES)
    assert rows['cat']['all'] != rows['dog']['all']
