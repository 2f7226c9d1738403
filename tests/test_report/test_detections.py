"""Matching and the measure of change, against geometry written out by hand."""

import itertools
import json
import random

import numpy as np
import pytest

from mmbitsplit.report.detections import SAME_IOU, Detections, change, match_detections, unmatched

mask_api = pytest.importorskip('pycocotools.mask')


def some(seed: int, count: int = 6) -> Detections:
    """Random boxes of two classes, many of which overlap."""
    chance = random.Random(seed)
    boxes = []
    for _ in range(count):
        x, y = chance.uniform(0, 30), chance.uniform(0, 30)
        boxes.append([x, y, x + chance.uniform(5, 25), y + chance.uniform(5, 25)])
    return Detections(boxes, sorted((chance.uniform(0.3, 1) for _ in boxes), reverse=True),
                      [chance.randrange(2) for _ in boxes])


def overlap(a, b) -> float:
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high / (sum(area) - wide * high)


def with_masks(seed: int) -> Detections:
    plain = some(seed, 3)
    masks = []
    for box in plain.boxes:
        pixels = np.zeros((60, 60), np.uint8, order='F')
        x0, y0, x1, y1 = map(round, box)
        pixels[y0:y1, x0:x1] = 1
        rle = mask_api.encode(pixels)
        masks.append({'size': [60, 60], 'counts': rle['counts'].decode()})
    return Detections(plain.boxes, plain.scores, plain.labels, masks)


@pytest.mark.parametrize('seed', range(20))
def test_pairs_are_one_to_one_of_one_class_and_overlap(seed):
    ours, theirs = some(seed), some(seed + 100, 7)
    pairs = match_detections(ours, theirs)
    assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
    for i, j, value in pairs:
        assert ours.labels[i] == theirs.labels[j] and value >= SAME_IOU
        assert value == pytest.approx(overlap(ours.boxes[i], theirs.boxes[j]))
    # No pair that could still be made is left.
    left, right = unmatched(ours, theirs)
    for i, j in itertools.product(left, right):
        assert ours.labels[i] != theirs.labels[j] \
            or overlap(ours.boxes[i], theirs.boxes[j]) < SAME_IOU
    assert len(left) + len(pairs) == 6 and len(right) + len(pairs) == 7


@pytest.mark.parametrize('make', [some, with_masks])
@pytest.mark.parametrize('seed', range(5))
def test_change_is_zero_for_equal_and_symmetric(make, seed):
    ours, theirs = make(seed), make(seed + 50)
    assert change(ours, ours) == 0
    assert change(ours, theirs) == pytest.approx(change(theirs, ours)) and \
        change(ours, theirs) > 0


def test_a_lost_detection_counts_with_its_score():
    ours = some(3)
    for index, score in enumerate(ours.scores):
        fewer = Detections(*([value for place, value in enumerate(part) if place != index]
                             for part in (ours.boxes, ours.scores, ours.labels)))
        # The others match themselves: a box overlaps none better.
        assert change(ours, fewer) == pytest.approx(score)
        assert unmatched(ours, fewer) == ({index}, set())


def test_small_shifts_count_less_than_a_loss():
    box = [[10.0, 10.0, 30.0, 30.0]]
    found = Detections(box, [0.9], [0])
    shifted = Detections([[11.0, 10.0, 31.0, 30.0]], [0.85], [0])
    nothing, other = Detections([], [], []), Detections(box, [0.9], [1])
    assert 0 < change(found, shifted) < 0.02 < change(found, nothing) == 0.9
    assert change(found, other) == pytest.approx(1.8)  # another class: one lost, one new
    assert change(nothing, nothing) == 0


def test_masks_decide_where_both_have_them():
    ours = with_masks(1)
    emptied = np.zeros((60, 60), np.uint8, order='F')
    emptied[0, 0] = 1
    mask = {'size': [60, 60], 'counts': mask_api.encode(emptied)['counts'].decode()}
    theirs = Detections(ours.boxes, ours.scores, ours.labels, [mask] * 3)
    assert not match_detections(ours, theirs)
    assert len(match_detections(Detections(ours.boxes, ours.scores, ours.labels), theirs)) == 3


def test_plain_values_round_trip():
    ours = with_masks(2)
    assert Detections.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
