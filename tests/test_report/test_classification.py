"""Accuracy by class and the measure of change, counted by hand."""

import json

import pytest

from mmbitsplit.report.classification import Answer, accuracy_by_class, change


def test_accuracy_counts_only_images_of_a_known_class():
    answers = [Answer([1, 2], [0.8, 0.1], 1), Answer([2, 1], [0.7, 0.2], 1),
               Answer([0], [0.9], 0), Answer([3], [0.9], None)]
    assert accuracy_by_class(answers) == {0: (1.0, 1), 1: (0.5, 2)}
    right = sum(part * count for part, count in accuracy_by_class(answers).values())
    assert right == sum(a.labels[0] == a.truth for a in answers)


def test_change_is_zero_for_equal_symmetric_and_at_most_one():
    first, second = Answer([1, 2], [0.8, 0.2]), Answer([3, 1], [0.6, 0.4])
    assert change(first, first) == (False, 0.0)
    assert change(first, second) == pytest.approx(change(second, first))
    assert change(first, second)[1] == pytest.approx((0.4 + 0.2 + 0.6) / 2)
    assert change(Answer([0], [1.0]), Answer([1], [1.0])) == (True, 1.0)


def test_a_changed_label_sorts_above_a_changed_score():
    flipped = change(Answer([0, 1], [0.51, 0.49]), Answer([1, 0], [0.51, 0.49]))
    calmer = change(Answer([0, 1], [0.99, 0.01]), Answer([0, 1], [0.6, 0.4]))
    assert flipped[1] < calmer[1] and flipped > calmer


def test_plain_values_round_trip():
    answer = Answer([4, 2], [0.5, 0.25], 2)
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
