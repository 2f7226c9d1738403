"""The GPU's script without a GPU: what it would run can be read, its models can be computed."""

import pytest
import torch

from benchmarks.gpu import LONG, MODELS, PARTS, QDROP, USUAL, RetinaNet, arguments, leaves
from mmbitsplit.calibration import read_request


def test_long_parts_run_when_they_are_named():
    assert arguments([]).parts == list(PARTS)
    assert arguments(['--parts', *LONG]).parts == ['qdrop_resnet50', 'retinanet_default']


def test_what_is_asked_for_is_a_request():
    qdrop = read_request(QDROP)
    assert (qdrop.method, qdrop.weight.num_bits, qdrop.activation.num_bits) == (
        {'type': 'QDrop'}, 4, 4)  # with as many steps as published
    assert read_request(USUAL).method == {'type': 'BitSplit'}


@pytest.mark.parametrize('name', MODELS)
def test_models_give_what_detectors_and_classifiers_give(name):
    build, shape = MODELS[name]
    with torch.device('meta'):
        outputs = leaves(build().eval()(torch.zeros(2, *shape)))
    assert len(outputs) == {'resnet50': 1, 'detector': 6, 'retinanet': 10}[name]
    if name == 'retinanet':
        assert [tuple(one.shape[1:]) for one in outputs[::2]] == [
            (720, 100, 168), (720, 50, 84), (720, 25, 42), (720, 13, 21), (720, 7, 11)]


def test_retinanet_is_as_large_as_published():
    """R50-FPN with heads of 9 anchors and 80 classes, batch norms of the backbone included."""
    with torch.device('meta'):
        size = sum(value.numel() for value in RetinaNet().parameters())
    assert 37.5e6 < size < 38.5e6
