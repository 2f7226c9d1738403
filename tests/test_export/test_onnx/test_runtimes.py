"""Files in runtimes: shapes, batches, errors that say what to do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.operator_check import OperatorCounts, executed_operators
from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.export.onnx.runtimes import OnnxGraph, restore

RUNTIMES = ['onnxruntime', 'openvino']


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def file(layer_of, write_chain):
    """A file for one image of 5x5."""
    layer = layer_of(nn.Conv2d(3, 2, 3), 'tensor')
    return write_chain([layer], torch.zeros(1, 3, 5, 5))[0]


def test_a_batch_goes_image_by_image_where_the_file_takes_one(file, runtime):
    graph, images = OnnxGraph(file, runtime, threads=1), torch.rand(3, 3, 5, 5)
    together = graph(images)[0]
    for index in range(3):
        assert torch.equal(together[index:index + 1], graph(images[index:index + 1])[0])


def test_another_shape_is_refused(file, runtime):
    with pytest.raises(ValueError, match=r'1 x 3 x 5 x 5.*--dynamic'):
        OnnxGraph(file, runtime)(torch.zeros(1, 3, 6, 5))


def test_a_damaged_file_is_refused(tmp_path, runtime):
    (tmp_path / 'bad.onnx').write_bytes(b'no graph')
    with pytest.raises(ValueError, match=f'cannot be loaded by {runtime}'):
        OnnxGraph(tmp_path / 'bad.onnx', runtime)


def test_an_unknown_runtime_is_refused(file):
    for function in (OnnxGraph, executed_operators):
        with pytest.raises(ValueError, match="runtime='tensorrt'"):
            function(file, 'tensorrt')


def test_a_missing_package_names_the_extra():
    with pytest.raises(ValueError, match=r'no_such_package.*mmbitsplit\[onnx\]'):
        need('no_such_package')


def test_outputs_are_nested_as_the_module_returned_them():
    values = [torch.tensor(float(index)) for index in range(4)]
    nested = restore(values, [['a', 'b'], 'c', [['d']]])
    assert nested == [[values[0], values[1]], values[2], [[values[3]]]]


def test_matrix_products_run_in_integers(layer_of, write_chain, runtime):
    layer = layer_of(nn.Linear(32, 16), 'ecaq')
    counts = executed_operators(write_chain([layer], torch.zeros(2, 32))[0], runtime)
    assert (counts.integer_products, counts.products) == (1, 1)


def test_four_bit_convolutions_run_in_float(layer_of, write_chain, runtime):
    layer = layer_of(nn.Conv2d(8, 8, 3))
    path, _, _ = write_chain([layer], torch.zeros(1, 8, 6, 6), format='int4')
    counts = executed_operators(path, runtime)
    assert (counts.integer_convolutions, counts.convolutions) == (0, 1)


def test_counts_say_themselves():
    counts = OperatorCounts(operators={}, integer_convolutions=3, convolutions=5,
                            integer_products=0, products=0)
    assert str(counts) == '3 of 5 convolutions run in integers'
    assert str(replace(counts, integer_products=1, products=2)) == (
        '3 of 5 convolutions and 1 of 2 matrix products run in integers')
