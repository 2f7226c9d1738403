"""The GPU's script without a GPU: what it would run can be read, its models can be computed."""

import pytest
import torch

from benchmarks import gpu_integers
from benchmarks.gpu import LONG, MODELS, NEAREST, PARTS, QDROP, USUAL, RetinaNet, arguments, leaves
from mmbitsplit.calibration import read_request
from mmbitsplit.models.layers.integer_support import why_no_integers

CPU = torch.device('cpu')


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


def test_rows_of_integers_on_a_cpu(monkeypatch):
    """With torch's own kernels, which Triton's are compared with on a GPU."""
    monkeypatch.setattr(gpu_integers, 'ROUNDS', 1)
    monkeypatch.setattr(gpu_integers, 'CALLS', 1)
    cases = {'convolution': gpu_integers.Case(2, (6, 5), 64, 8, 3, 2),
             'linear': gpu_integers.Case(2, (7,), 32, 8)}
    convolution, linear = gpu_integers.measure_layers(CPU, cases, 'torch')
    assert convolution['equal'] and convolution['equal_4_bits'] and linear['equal']
    assert convolution['packed'] and not linear['packed']
    assert {'float32', 'float32 in full', 'half', 'rounding', 'int8', 'int4', 'layer',
            'torch'} < set(linear)
    product, = gpu_integers.measure_products(CPU, {'product': (2, 3, 7, 40, 5)}, 'torch')
    assert product['equal'] and product['int8'] > 0
    assert gpu_integers._places(cases['convolution']) == 2 * 3 * 3


def test_a_model_in_integers_on_a_cpu(monkeypatch):
    if why_no_integers() is not None:
        pytest.skip('torch without bytes')
    monkeypatch.setattr(gpu_integers, 'ROUNDS', 1)
    monkeypatch.setattr(gpu_integers, 'CALLS', 1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(),
                                torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
                                torch.nn.Conv2d(8, 4, 3)).eval()
    row = gpu_integers.measure_model(model, torch.randn(2, 3, 12, 12), NEAREST)
    assert row['integer_layers'] and row['difference'] < 0.05
    assert row['integers'] > 0 and row['half'] > 0
