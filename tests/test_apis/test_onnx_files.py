"""Any quantized torch module as ONNX, by example inputs."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import export_onnx, quantize_model

pytest.importorskip('onnxscript')


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    quantize_model(model, [torch.rand(2, 3, 9, 9) for _ in range(3)],
                   dict(method=dict(type='RoundToNearest')))
    return model


def test_one_tensor_is_one_input(model, tmp_path):
    """Not a sequence of its images."""
    x = torch.rand(2, 3, 9, 9)
    files = [export_onnx(model, tmp_path / name, inputs=inputs)[0].path
             for name, inputs in (('tensor', x), ('tuple', (x,)))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_graph_that_onnx_does_not_allow_is_one_clear_error(model, tmp_path):
    """Torch convolves an image without a batch, ONNX does not."""
    with pytest.raises(ValueError, match='none that ONNX allows.*with a batch'):
        export_onnx(model, tmp_path, inputs=torch.rand(3, 9, 9))
    assert not list(tmp_path.iterdir())
