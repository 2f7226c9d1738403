"""Differences are counted in steps of the expected output's range."""

import pytest
import torch

from mmbitsplit.export.onnx.agreement import Agreement, compare_outputs


def test_steps_are_a_255th_of_the_range():
    expected = torch.linspace(0, 255, 256)
    actual = expected.clone()
    actual[0] += 1.0
    actual[1] -= 3.0
    found = compare_outputs([expected], [actual])
    assert found == Agreement(256, 255, 3.0)
    assert found.share == 255 / 256


def test_calls_add_up():
    total = Agreement(10, 9, 2.0) + Agreement(30, 30, 0.5)
    assert total == Agreement(40, 39, 2.0)
    assert Agreement().share == 1.0


def test_a_constant_output_agrees_only_when_equal():
    ones = torch.ones(4)
    assert compare_outputs([ones], [ones]).share == 1.0
    assert compare_outputs([ones], [ones + 1e-3]).share == 0.0
    assert compare_outputs([ones[:0]], [ones[:0]]).elements == 0


def test_outputs_of_another_model_are_refused():
    with pytest.raises(ValueError, match='belongs to another model'):
        compare_outputs([torch.ones(3)], [torch.ones(4)])
