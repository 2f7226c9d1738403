"""Predictions and precision are noted beside an evaluation that does not notice."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from mmbitsplit.calibration import Team
from mmbitsplit.engine.results import evaluation_record
from mmbitsplit.engine.results.evaluation_record import (
    EvaluationRecord,
    RecordingHook,
    note_answer,
    note_detections,
    recording_evaluation,
)
from mmbitsplit.report.detections import LEAST_SCORE


def instances(count: int = 5, masks=None):
    structures = pytest.importorskip('mmengine.structures')
    found = structures.InstanceData(
        bboxes=torch.arange(4.0 * count).view(count, 4), labels=torch.arange(count),
        scores=torch.linspace(0.15, 0.95, count))
    if masks is not None:
        found.masks = masks
    return found


def detection_sample(path: str = 'a.jpg', **changes):
    structures = pytest.importorskip('mmdet.structures')
    sample = structures.DetDataSample(metainfo=dict(img_path=path, ori_shape=(20, 30), img_id=1))
    sample.pred_instances = instances(**changes)
    return sample


def class_sample(path: str = 'a.jpg', scores=(0.1, 0.7, 0.2), truth=1):
    structures = pytest.importorskip('mmpretrain.structures')
    sample = structures.DataSample(metainfo=dict(img_path=path))
    return sample.set_pred_score(torch.tensor(scores)).set_pred_label(1).set_gt_label(truth)


def test_the_best_detections_are_kept_in_order():
    found = note_detections(instances())
    assert found.scores == [0.95, 0.75, 0.55, 0.35] and found.labels == [4, 3, 2, 1]
    assert all(score >= LEAST_SCORE for score in found.scores)
    assert found.boxes[0] == [16, 17, 18, 19] and found.masks is None


def test_masks_come_from_pixels_and_from_run_lengths():
    mask_api = pytest.importorskip('pycocotools.mask')
    pixels = torch.zeros(5, 20, 30, dtype=torch.bool)
    for index in range(5):
        pixels[index, :index + 1, 2:9] = True
    from_pixels = note_detections(instances(masks=pixels))
    lengths = [mask_api.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
               for mask in pixels]
    assert note_detections(instances(masks=lengths)) == from_pixels
    json.dumps(from_pixels.to_dict())
    for label, mask in zip(from_pixels.labels, from_pixels.masks):
        again = mask_api.decode({**mask, 'counts': mask['counts'].encode()})
        assert np.array_equal(again.astype(bool), pixels[label].numpy())


def test_rotated_boxes_are_refused():
    found = instances()
    found.pop('bboxes')
    found.bboxes = torch.zeros(5, 5)
    with pytest.raises(ValueError, match='5 numbers'):
        note_detections(found)


def test_answers_hold_the_best_classes_and_the_truth():
    answer = note_answer(class_sample())
    assert answer.labels == [1, 2, 0] and answer.scores == [0.7, 0.2, 0.1] and answer.truth == 1
    with pytest.raises(ValueError, match='2 true classes'):
        note_answer(class_sample(truth=torch.tensor([0, 1])))


def test_every_image_counts_and_only_some_are_kept():
    record = EvaluationRecord()
    hook = RecordingHook(record, most=3)
    for number in range(5):
        hook.after_test_iter(None, number, None, [detection_sample(f'{number}.jpg')])
    assert record.total == 5 and list(record.images) == ['0.jpg', '1.jpg', '2.jpg']
    assert record.kind == 'detection' and record.images['0.jpg']['size'] == [20, 30]
    assert EvaluationRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize('sample, said', [
    (object(), 'has no attribute'), ('unknown', 'neither detections nor class scores'),
    ('no path', 'img_path')])
def test_what_is_not_understood_is_said_once(sample, said):
    structures = pytest.importorskip('mmengine.structures')
    if sample == 'unknown':
        sample = structures.BaseDataElement(metainfo=dict(img_path='a.jpg'))
    elif sample == 'no path':
        sample = structures.BaseDataElement()
    record = EvaluationRecord()
    hook = RecordingHook(record)
    for number in range(3):
        hook.after_test_iter(None, number, None, [sample])
    assert len(record.problems) == 1 and said in record.problems[0]
    assert record.total == 3 and not record.images


class FakeRunner:
    """Hooks of a Runner, without the Runner."""

    def __init__(self):
        self._hooks = ['another']

    def register_hook(self, hook, priority):
        self._hooks.append(hook)


def evaluate_tiny(score: float = 0.9):
    """Evaluates one box as CocoMetric does."""
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools import cocoeval

    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = dict(images=[dict(id=1, height=50, width=50)], annotations=[dict(
            id=1, image_id=1, category_id=3, bbox=[5, 5, 20, 20], area=400, iscrowd=0)],
            categories=[dict(id=3, name='cat'), dict(id=5, name='dog')])
        api.createIndex()
        found = api.loadRes([dict(image_id=1, category_id=3, bbox=[5, 5, 20, 20], score=score)])
        evaluation = cocoeval.COCOeval(api, found, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def test_hook_and_accumulation_are_as_before_afterwards():
    cocoeval = pytest.importorskip('pycocotools.cocoeval')
    runner, accumulate = FakeRunner(), cocoeval.COCOeval.accumulate
    expected = evaluate_tiny().eval['precision']
    with recording_evaluation(runner, Team()) as record:
        assert len(runner._hooks) == 2
        runner._hooks[1].after_test_iter(runner, 0, None, [class_sample('x.png')])
        inside = evaluate_tiny().eval['precision']
    assert np.array_equal(inside, expected)
    assert runner._hooks == ['another'] and cocoeval.COCOeval.accumulate is accumulate
    cat, dog = (record.precision['bbox'][name] for name in ('cat', 'dog'))
    assert cat == {'all': pytest.approx(1), 'small': pytest.approx(1), 'medium': None,
                   'large': None}
    assert dog == dict.fromkeys(('all', 'small', 'medium', 'large'))
    assert list(record.images) == ['x.png'] and record.kind == 'classification'


def test_an_evaluation_that_fails_leaves_nothing_behind():
    cocoeval = pytest.importorskip('pycocotools.cocoeval')
    runner, accumulate = FakeRunner(), cocoeval.COCOeval.accumulate
    with pytest.raises(RuntimeError, match='test'):
        with recording_evaluation(runner, Team()):
            raise RuntimeError('test')
    assert runner._hooks == ['another'] and cocoeval.COCOeval.accumulate is accumulate


def test_a_precision_that_cannot_be_noted_harms_nothing(monkeypatch):
    def broken(*args):
        raise KeyError('broken')
    monkeypatch.setattr(evaluation_record, 'precision_by_class', broken)
    with recording_evaluation(FakeRunner(), Team()) as record:
        assert evaluate_tiny().eval['precision'].size
    assert record.precision == {} and 'KeyError' in record.problems[0]


class TwoProcesses(Team):
    """A team whose other process has seen other images."""

    size = 2

    def gather(self, value):
        kind, images, total, problems = value
        other = {**images, 'theirs.png': {'labels': [0], 'scores': [1.0], 'truth': 0}}
        return [value, ('classification', other, total + 1, [*problems, 'theirs'])]


def test_images_of_all_processes_are_joined():
    runner = FakeRunner()
    with recording_evaluation(runner, TwoProcesses()) as record:
        runner._hooks[1].after_test_iter(runner, 0, None, [class_sample('ours.png')])
    assert set(record.images) == {'ours.png', 'theirs.png'} and record.total == 3
    assert record.problems == ['theirs']
