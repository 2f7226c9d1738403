"""What the COCO benchmark prints of predictions."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')
from benchmarks.budget_rows import Row  # noqa: E402
from benchmarks.coco_mini import kept, raw_error, request  # noqa: E402


def result(boxes, scores, labels):
    return SimpleNamespace(bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
                           scores=torch.tensor(scores), labels=torch.tensor(labels))


def test_sure_detections_count_as_found_by_class_place_and_score():
    wanted = result([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70],
                     [80, 80, 90, 90]], [0.9, 0.8, 0.7, 0.3, 0.2], [1, 2, 3, 4, 5])
    found = result([[0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 46], [60, 60, 70, 70]],
                   [0.5, 0.8, 0.7, 0.1], [1, 1, 3, 4])
    assert kept([found], [wanted]) == 25.0  # another class, place and score
    assert kept([wanted], [wanted]) == 100.0


def test_raw_error_is_relative_to_the_spread_of_a_channel():
    floats = [torch.tensor([0.0, 2.0]).view(1, 1, 1, 2), torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)]
    raw = [floats[0] + 1.0, floats[1].clone()]
    assert raw_error(raw, floats) == pytest.approx((2 / 2 + 0) / 2)


def test_requests_leave_open_what_is_not_named():
    spec = request(Row('w4a8', 4, 8), 'default', 'minmax', 'BitSplit', 3, 64)
    assert spec['weight'] == {'num_bits': 4}
    assert spec['activation'] == {'num_bits': 8, 'scale_search': 'minmax'}
    assert spec['calibration'] == {'seed': 3, 'num_images': 64}
    assert request(Row('W8A32', 8, 32), 'ecaq', 'default', 'MSE', 0, 8)['activation'] == {
        'num_bits': None, 'mode': 'ecaq'}
    budget = {'weight_bits': 4.5}
    assert request(Row('', 8, 8, budget), 'default', 'default', 'MSE', 0, 8)['budget'] == budget
