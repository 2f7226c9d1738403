"""What the CIFAR benchmark prints of predictions."""

import pytest
import torch

from benchmarks.cifar import accuracy, agreement, divergence, over_seeds


def test_accuracy_and_agreement_count_images():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75.0
    assert agreement(logits, torch.tensor([[0.0, 9.0], [1.0, 0.0], [9.0, 0.0], [0.0, 1.0]])) == 50


def test_divergence_is_that_of_the_definition():
    torch.manual_seed(0)
    logits, floats = torch.randn(5, 4), torch.randn(5, 4)
    p, q = floats.double().softmax(1), logits.double().softmax(1)
    assert divergence(logits, floats) == pytest.approx(float((p * (p / q).log()).sum() / 5), 1e-5)
    assert divergence(floats, floats) == 0.0


def test_over_seeds_gives_the_sample_standard_deviation():
    assert over_seeds([1.0, 3.0]) == '2.00 ± 1.41'
    assert over_seeds([0.12348], 4) == '0.1235'  # of one value there is none
