"""A product of activations is a MatMul between quantizers in the file, run in integers."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'helpers'))
from attention_nets import Encoder  # noqa: E402
from calibration_nets import _images, _seeded  # noqa: E402

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmbitsplit.calibration import calibrate, read_request  # noqa: E402
from mmbitsplit.export.onnx.agreement import compare_outputs  # noqa: E402
from mmbitsplit.export.onnx.operator_check import executed_operators  # noqa: E402
from mmbitsplit.export.onnx.runtimes import OnnxGraph  # noqa: E402
from mmbitsplit.export.onnx.trace import GraphRequest  # noqa: E402
from mmbitsplit.export.onnx.write_file import write_onnx  # noqa: E402
from mmbitsplit.models.layers.product import Product  # noqa: E402
from mmbitsplit.structures import Log2Params, ProductSolution, QParams  # noqa: E402


class Alone(nn.Module):
    """A product and nothing else."""

    def __init__(self, solution):
        super().__init__()
        self.product = Product()
        self.product.install(solution)

    def forward(self, a, b):
        return self.product(a, b.mT)


def params(scale, zero_point, low, high):
    return QParams(torch.tensor(scale), torch.tensor(zero_point), low, high)


SIGNED, WIDE = params([0.02], [0.0], -128, 127), params([0.015], [100.0], 0, 255)
NARROW, HEADS = params([0.3], [6.0], 0, 15), params([0.3, 0.2, 0.4], [0.0] * 3, -8, 7)


@pytest.mark.parametrize('a, b, integers', [
    (SIGNED, WIDE, 1), (WIDE, SIGNED, 1), (SIGNED, SIGNED, 1), (NARROW, SIGNED, 1),
    (HEADS, WIDE, 0), (SIGNED, HEADS, 0), (Log2Params(4), WIDE, 0), (None, NARROW, 0)])
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_a_product_by_itself_gives_what_torch_gives(a, b, integers, runtime, tmp_path):
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    if isinstance(a, Log2Params):
        inputs = (10 * inputs[0]).softmax(-1), inputs[1]
        inputs[0][0, 0, 0, :] = torch.tensor([1.0] + [0.0] * 7)
    model = Alone(ProductSolution(a, b)).eval()
    file = write_onnx(GraphRequest('net', model, inputs, ('a', 'b')), tmp_path / 'net.onnx')
    assert file.products == 1
    [found] = OnnxGraph(file.path, runtime, threads=1)(*inputs)
    wanted = model(*inputs)
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-4, atol=1e-4)
    if runtime == 'onnxruntime':
        counts = executed_operators(file.path)
        assert (counts.integer_products, counts.products) == (integers, 1)


def test_a_product_of_several_widths_is_written_at_those_in_use(tmp_path):
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    model, seen = Alone(ProductSolution(WIDE, SIGNED, narrower_a=(NARROW,), narrower_b=(
        NARROW,))).eval(), []
    for a, b in ((8, 8), (4, 8), (4, 4)):
        model.product.use(a=a, b=b)
        file = write_onnx(GraphRequest('net', model, inputs, ('a', 'b')),
                          tmp_path / f'{a}{b}.onnx')
        seen.append(torch.as_tensor(OnnxGraph(file.path, 'onnxruntime', threads=1)(*inputs)[0]))
        torch.testing.assert_close(seen[-1], model(*inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])


def test_attention_runs_in_integers(tmp_path):
    model, batches = _seeded(lambda: Encoder(2, masked=True)), _images(6)
    calibrate(model, batches, read_request(dict(
        weight=dict(num_bits=8), calibration=dict(rows_per_layer=256),
        method=dict(type='RoundToNearest'), activation=dict(num_bits=8, mode='per_tensor'))),
        run=lambda model, batch: model(batch))
    image = batches[0]
    file = write_onnx(GraphRequest('net', model, (image,), ('image',)), tmp_path / 'net.onnx')
    assert file.products == 4
    counts = executed_operators(file.path)
    assert (counts.integer_products, counts.products) == (4 + 2 * 4 + 1,) * 2, counts
    with torch.no_grad():
        expected = [model(image)]
    for runtime in ('onnxruntime', 'openvino'):
        pytest.importorskip(runtime)
        agreement = compare_outputs(expected, OnnxGraph(file.path, runtime, threads=1)(image))
        assert agreement.share > 0.95, (runtime, agreement)
