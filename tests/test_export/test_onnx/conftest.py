"""Layers with random codes, and graphs of their calls written without torch's exporter."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from mmbitsplit.functional import channel_dim, code_range, whole_steps
from mmbitsplit.models import QuantizedLayer, apply, layer_geometry
from mmbitsplit.structures import LayerSolution, QParams

onnx_ir = pytest.importorskip('onnx_ir')
pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from mmbitsplit.export.onnx.rewrite import write_layers  # noqa: E402
from mmbitsplit.export.onnx.runtimes import OnnxGraph  # noqa: E402
from mmbitsplit.export.onnx.trace import DOMAIN, OP_TYPE, OPSET  # noqa: E402


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """These tensors are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_qparams(kind: str, channels: int, bits: int = 8) -> QParams | None:
    """'float', or a unit input: 'tensor', 'ecaq', 'powers', 'asymmetric', 'zero_points', 'signed';
    or 'per_channel'."""
    if kind == 'float':
        return None
    low, high = code_range(bits, signed=kind == 'signed')
    count = 1 if kind == 'tensor' else channels
    scale = torch.rand(count) * 0.02 + 0.01
    if kind == 'powers':
        scale = 2.0 ** torch.randint(-8, -4, (count,))
    zero_point = torch.zeros(count)
    if kind == 'asymmetric':
        zero_point += high // 3
    if kind in ('zero_points', 'per_channel'):
        zero_point = torch.randint(0, high // 2, (count,)).float()
    return QParams(scale, zero_point, low, high, unit=kind != 'per_channel')


def make_layer(module: nn.Module, inputs: str = 'ecaq', bits: int = 4, input_bits: int = 8,
               seed: int = 0) -> QuantizedLayer:
    """A quantized layer with random codes; its outputs are about as large as its inputs."""
    torch.manual_seed(seed)
    geometry = layer_geometry(module)
    layer = QuantizedLayer(geometry, module.weight, module.bias)
    low, high = code_range(bits, signed=True, narrow_range=True)
    codes = torch.randint(low, high + 1, geometry.weight_shape).to(torch.int8)
    qparams = make_qparams(inputs, geometry.in_channels, input_bits)
    size = geometry.inputs_per_output ** 0.5 * high
    steps = (torch.rand(geometry.out_channels) + 0.5) / size
    if qparams is not None and qparams.unit:
        steps = steps * float(qparams.scale.mean())
    bias = None if module.bias is None else torch.randn(geometry.out_channels) * 0.3
    if bias is not None and qparams is not None and qparams.unit:
        bias = whole_steps(bias, steps)  # as calibration leaves it
    apply(layer, LayerSolution(codes=codes, num_bits=bits, weight_scale=steps, bias=bias,
                               qparams=qparams))
    return layer.eval()


class Chain(nn.Module):
    """Layers one after another, with ReLU or nothing between."""

    def __init__(self, layers: Sequence[QuantizedLayer], relu: bool = True):
        super().__init__()
        self.layers, self.relu = nn.ModuleList(layers), relu

    @torch.no_grad()
    def forward(self, x):
        for index, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if index and self.relu else x)
        return x


def chain_model(layers: Sequence[QuantizedLayer], x: torch.Tensor, tap: bool = False,
                relu: bool = True):
    """The graph of a Chain as tracing leaves it; ``tap`` makes the first output a graph output."""
    ir = onnx_ir
    value = image = ir.Value(name='x', shape=ir.Shape(x.shape),
                             type=ir.TensorType(ir.DataType.FLOAT))
    nodes, outputs = [], []
    for index, layer in enumerate(layers):
        shape = [None] * x.dim()
        shape[channel_dim(layer.geometry)] = layer.geometry.out_channels
        for op_type, domain, facts in (('Relu', '', {}), (OP_TYPE, DOMAIN, {'layer': str(index)})):
            if op_type == 'Relu' and not (index and relu):
                continue
            out = ir.Value(name=f'{op_type}_{index}', type=ir.TensorType(ir.DataType.FLOAT),
                           shape=ir.Shape(shape) if domain else value.shape)
            nodes.append(ir.node(op_type, [value], facts, domain=domain, outputs=[out]))
            value = out
        if tap and not index:
            outputs.append(value)
    graph = ir.Graph([image], [value, *outputs], nodes=nodes, name='chain',
                     opset_imports={'': OPSET, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def layer_of():
    """Makes a layer with random codes."""
    return make_layer


@pytest.fixture
def chain_of():
    """Makes a torch module of layers with ReLU between."""
    return Chain


@pytest.fixture
def write_chain(tmp_path):
    """Writes a chain of layers as an ONNX file; returns its path, the folds and the model."""
    def write(layers, x, name='chain', tap=False, relu=True, **options):
        model = chain_model(layers, x, tap, relu)
        folds = write_layers(model, {str(i): layer for i, layer in enumerate(layers)}, **options)
        path = tmp_path / f'{name}.onnx'
        onnx_ir.save(model, path)
        return path, folds, model
    return write


@pytest.fixture
def run_file():
    """Runs a file: ``optimize=False`` lets onnxruntime compute node by node."""
    def run(path, x, runtime='onnxruntime', optimize=True):
        if optimize:
            return OnnxGraph(path, runtime, threads=1)(x)[0]
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options)
        return torch.from_numpy(session.run(None, {'x': x.numpy()})[0])
    return run
