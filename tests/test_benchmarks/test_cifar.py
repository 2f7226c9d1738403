"""What the CIFAR benchmark prints of predictions."""

import pytest
import torch

from benchmarks.cifar import (
    NETWORKS,
    accuracy,
    agreement,
    divergence,
    over_seeds,
    request,
)
from mmbitsplit.calibration import read_request


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


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_have_the_sizes_of_their_papers(name):
    """Weights and biases, of which batch norms have two a channel."""
    model = NETWORKS[name].build().eval()
    assert sum(value.numel() for value in model.parameters()) == {
        'resnet20': 269722, 'resnet56': 853018, 'shufflenetv2': 352042}[name]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_request_holds_the_method_its_steps_and_options():
    found = request('adaround@50:qdrop', 3, 4, 2, ['batch_size=8', 'ridge=1'])
    assert found == {
        'weight': {'num_bits': 3}, 'activation': {'num_bits': 4, 'placement': 'qdrop'},
        'method': {'type': 'AdaRound', 'iterations': 50, 'batch_size': 8},
        'calibration': {'seed': 2, 'sampling': 'even'}}
    read_request(found)
