"""A residual stream in codes is a pair of quantizer nodes in the file."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'helpers'))
from calibration_nets import ResidualNet, _images, _seeded  # noqa: E402

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmbitsplit.calibration import calibrate, read_request  # noqa: E402
from mmbitsplit.export.onnx.agreement import compare_outputs  # noqa: E402
from mmbitsplit.export.onnx.runtimes import OnnxGraph  # noqa: E402
from mmbitsplit.export.onnx.trace import GraphRequest  # noqa: E402
from mmbitsplit.export.onnx.write_file import write_onnx  # noqa: E402


@pytest.mark.parametrize('form', ['int8', 'int4'])
def test_the_file_computes_what_the_model_does(tmp_path, form):
    model, batches = _seeded(ResidualNet), _images(8)
    calibrate(model, batches, read_request(dict(
        weight=dict(num_bits=4), calibration=dict(rows_per_layer=256),
        activation=dict(num_bits=4, placement='qdrop'))), run=lambda model, batch: model(batch))
    file = write_onnx(GraphRequest('net', model, (batches[0][:1],), ('image',)),
                      tmp_path / 'net.onnx', format=form)
    with torch.no_grad():
        expected = list(model(batches[0][:1]))
    # OpenVINO does not load small linear layers of 4-bit files, streams or none.
    for runtime in ('onnxruntime', 'openvino')[:1 if form == 'int4' else 2]:
        pytest.importorskip(runtime)
        found = OnnxGraph(file.path, runtime, threads=1)(batches[0][:1])
        agreement = compare_outputs(expected, found)
        assert agreement.share > 0.95, (runtime, agreement)
    import onnx
    names = [value.name for value in onnx.load(str(file.path)).graph.initializer]
    assert {'relu.stream.scale', 'blocks.0.stream.scale', 'blocks.1.stream.scale'} <= {*names}
