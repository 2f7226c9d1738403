"""Nets whose inputs have a zero point a channel compute in runtimes what they compute in torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.export import pack_checkpoint, unpack_state
from mmbitsplit.models import describe, quantized_layers, rebuild
from mmbitsplit.solving.tuning import LearnedValues

pytest.importorskip('onnx_ir')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from mmbitsplit.export.onnx.agreement import compare_outputs  # noqa: E402
from mmbitsplit.export.onnx.operator_check import executed_operators  # noqa: E402
from mmbitsplit.export.onnx.runtimes import OnnxGraph  # noqa: E402
from mmbitsplit.export.onnx.trace import GraphRequest  # noqa: E402
from mmbitsplit.export.onnx.write_file import write_onnx  # noqa: E402

pytestmark = pytest.mark.slow

ACTIVATIONS = {'silu': F.silu, 'gelu': F.gelu, 'hardswish': F.hardswish,
               'leaky_relu': lambda x: F.leaky_relu(x, 0.1), 'none': lambda x: x}


class Net(nn.Module):
    """Plain, depthwise, pointwise and strided convolutions; a skip; a linear layer."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1, bias=False)
        self.skipped = nn.Conv2d(16, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 8, (3, 5), 2, padding=(1, 2), groups=2)
        self.hidden, self.last = nn.Linear(8, 10), nn.Linear(10, 4)
        with torch.no_grad():  # channels of different reach and place
            for layer in (self.first, self.depthwise, self.point, self.skipped):
                layer.weight *= 2 * torch.logspace(-0.5, 0.7, len(layer.weight)).view(-1, 1, 1, 1)
                if layer.bias is not None:
                    layer.bias.copy_(layer.weight.flatten(1).norm(dim=1))

    def forward(self, x):
        for layer in (self.first, self.depthwise, self.point):
            x = self.activation(layer(x))
        x = self.activation(self.grouped(x + self.activation(self.skipped(x))))
        return self.last(self.activation(self.hidden(x.mean((2, 3)))))


@pytest.fixture
def net_of():
    """Makes a quantized net, and images."""
    def make(name, **activation):
        net = Net(ACTIVATIONS[name]).eval()
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(16, 3, 12, 12, generator=generator)
        prepared, _ = calibrate(net, list(images.split(4)), read_request(dict(
            weight=dict(num_bits=6), calibration=dict(rows_per_layer=1024),
            activation=dict(symmetry='asymmetric', strength=1.0, **activation))),
            run=lambda model, batch: model(batch))
        points = [layer.qparams.zero_point for _, layer in quantized_layers(net)
                  if layer.qparams is not None]
        assert sum(len(values.unique()) > 1 for values in points) >= 3
        return prepared, images
    return make


@pytest.mark.parametrize('placement', ['inputs', 'deploy'])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_both_runtimes_agree(net_of, tmp_path, name, placement):
    prepared, images = net_of(name, placement=placement)
    net = prepared.model
    file = write_onnx(GraphRequest('net', net, (images[:1],), ('image',)), tmp_path / 'net.onnx')
    with torch.no_grad():
        expected = net(images[:8])
    for runtime in ('onnxruntime', 'openvino'):
        pytest.importorskip(runtime)
        found = OnnxGraph(file.path, runtime, threads=1)(images[:8])[0]
        agreement = compare_outputs([expected], [found])
        assert agreement.share > 0.9, (runtime, agreement)
        assert agreement.largest < 6, (runtime, agreement)
        counts = executed_operators(file.path, runtime)
        # Behind a convolution onnxruntime wants codes of the type before it.
        assert counts.integer_convolutions >= sum(
            layer.geometry.kind == 'conv2d' and layer.qparams is not None
            and layer.output_qparams is not None and layer.output_qparams.quant_min == 0
            for _, layer in quantized_layers(net)), (runtime, counts)


def test_a_packed_file_keeps_the_zero_points(net_of):
    prepared, images = net_of('silu')
    net, other = prepared.model, Net(ACTIVATIONS['silu']).eval()
    packed = unpack_state(pack_checkpoint(net.state_dict(), describe(prepared), {})['state_dict'])
    rebuild(other, packed.description)
    other.load_state_dict(packed.state)
    with torch.no_grad():
        assert torch.equal(other(images), net(images))


@pytest.mark.parametrize('placement', ['inputs', 'deploy'])
def test_a_tuned_net_comes_back_from_files_and_runs_in_a_runtime(net_of, tmp_path, placement):
    """At a point far from the start: scales 5 % off, biases for layers that had none."""
    prepared, images = net_of('silu', placement=placement)
    net, other = prepared.model, Net(ACTIVATIONS['silu']).eval()
    with torch.no_grad():
        before = net(images)
    values = LearnedValues(prepared.layers, ('scales', 'biases', 'input_scales'), {
        name: torch.ones(layer.geometry.out_channels, dtype=torch.float64)
        for name, layer in prepared.layers.items()})
    values.write(0.05 * torch.randn(values.size, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(2)))
    values.end()
    packed = unpack_state(pack_checkpoint(net.state_dict(), describe(prepared), {})['state_dict'])
    rebuild(other, packed.description)
    other.load_state_dict(packed.state)
    file = write_onnx(GraphRequest('net', net, (images[:1],), ('image',)), tmp_path / 'net.onnx')
    with torch.no_grad():
        expected = net(images)
        assert torch.equal(other(images), expected) and not torch.equal(before, expected)
    agreement = compare_outputs([expected], [OnnxGraph(file.path, 'onnxruntime', threads=1)(
        images)[0]])
    assert agreement.share > 0.9 and agreement.largest < 6, agreement
