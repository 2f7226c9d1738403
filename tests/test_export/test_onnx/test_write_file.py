"""From a torch module to a file: torch's exporter, shared layers, shapes that vary, metadata."""

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.runtimes import OnnxGraph, restore
from mmbitsplit.export.onnx.trace import GraphRequest
from mmbitsplit.export.onnx.write_file import read_metadata, write_onnx
from mmbitsplit.models import SteppedLayer
from mmbitsplit.models.layers.steps import Step, Steps
from mmbitsplit.structures import QParams


class SharedHead(nn.Module):
    """A stem, and a head of two layers that runs on two sizes, like a detector's on its levels."""

    def __init__(self, layer_of):
        super().__init__()
        self.stem = layer_of(nn.Conv2d(3, 6, 3, 2, 1), 'float', seed=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Sequential(layer_of(nn.Conv2d(6, 6, 3, padding=1), 'tensor', seed=2),
                                  nn.ReLU(inplace=True),
                                  layer_of(nn.Conv2d(6, 2, 1), 'powers', seed=3))

    def forward(self, image):
        fine = torch.relu(self.norm(self.stem(image)))
        coarse = nn.functional.max_pool2d(fine, 2)
        fine = fine + nn.functional.interpolate(coarse, size=fine.shape[2:])
        return [self.head(level) for level in (fine, coarse)], (coarse.mean((2, 3)),)


@pytest.fixture
def model(layer_of):
    torch.manual_seed(0)
    return SharedHead(layer_of).eval()


def request_for(model, shape=(1, 3, 16, 20), dynamic=False):
    varying = {'image': {0: 'batch', 2: 'height', 3: 'width'}} if dynamic else {}
    return GraphRequest('model', model, (torch.zeros(shape),), ('image',), varying)


def compare(path, model, shape):
    """A 1e-3 share of elements may take the neighbouring code."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(x)
    found = restore(OnnxGraph(path, threads=1)(x), read_metadata(path)['outputs'])
    assert len(found) == 2 and len(found[0]) == 2 and len(found[1]) == 1
    for want, have in ((expected[0][0], found[0][0]), (expected[0][1], found[0][1]),
                       (expected[1][0], found[1][0])):
        assert ((want - have).abs() <= 1e-4).float().mean() > 0.97
        assert (want - have).abs().max() < 0.1 * want.abs().max()


def test_a_head_called_twice_is_stored_once(model, tmp_path):
    file = write_onnx(request_for(model), tmp_path / 'model.onnx')
    assert file.layers == 3
    assert file.folds == [('head.0', 'head.2')] * 2
    assert file.bytes == file.path.stat().st_size
    graph = onnx.load(str(file.path)).graph
    codes = [tensor.name for tensor in graph.initializer if tensor.name.endswith('.codes')]
    assert sorted(codes) == ['head.0.codes', 'head.2.codes', 'stem.codes']
    assert sum(node.op_type == 'Conv' for node in graph.node) == 5
    stored = sum(len(tensor.raw_data) for tensor in graph.initializer)
    weights = sum(layer.codes.numel() for layer in (model.stem, model.head[0], model.head[2]))
    assert weights < stored < weights + 1200  # nothing is stored in float beside the codes
    compare(file.path, model, (1, 3, 16, 20))


def test_soft_codes_are_refused(model, tmp_path):
    layer = model.head[0]
    whole = layer.weight_quantizer
    path = tmp_path / 'model.onnx'
    whole.soften(whole.codes.float())
    with pytest.raises(ValueError, match=r"'head.0' has codes that are not whole.*harden\(\)"):
        write_onnx(request_for(model), path)
    assert not path.exists()
    whole.harden()
    assert write_onnx(request_for(model), path).layers == 3


class Mixed(nn.Module):
    """A layer that reads a layer that can take its scales, and in another call one that cannot."""

    def __init__(self, layer_of):
        super().__init__()
        self.first = layer_of(nn.Conv2d(3, 3, 1), 'float', seed=1)
        self.shared = layer_of(nn.Conv2d(3, 3, 3), 'powers', seed=2)

    def forward(self, image):
        return self.shared(torch.relu(self.first(image))), self.shared(image)


def test_each_call_of_a_shared_layer_has_its_own_fold(layer_of, tmp_path):
    model = Mixed(layer_of).eval()
    file = write_onnx(request_for(model), tmp_path / 'model.onnx')
    assert file.folds == [('first', 'shared')]
    x = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for want, have in zip(model(x), OnnxGraph(file.path, threads=1)(x)):
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def test_shapes_vary_when_asked_for(model, tmp_path):
    file = write_onnx(request_for(model, (2, 3, 16, 20), dynamic=True), tmp_path / 'model.onnx')
    for shape in ((1, 3, 16, 20), (3, 3, 32, 24), (2, 3, 20, 36)):
        compare(file.path, model, shape)


class OwnClasses(nn.Module):
    """Padding by a rule, and steps before and behind a layer and a folded norm."""

    def __init__(self, layer_of, inputs):
        super().__init__()
        self.stem, self.body = layer_of(nn.Conv2d(3, 6, 3, 2), 'float'), layer_of(
            nn.Conv2d(6, 6, 3, 2, groups=6), inputs)
        for layer in (self.stem, self.body):
            layer.geometry = replace(layer.geometry, auto_padding='same_upper')
        self.act = Steps((Step('hardtanh.default', ({'value': 0}, 0, 6), {}),))
        self.head = SteppedLayer(
            Steps((Step('linalg_vector_norm.default', ({'value': 0}, 2, [1], True), {}),
                   Step('add.Tensor', ({'value': 1}, 1e-6), {}),
                   Step('div.Tensor', ({'value': 0}, {'value': 2}), {}))),
            layer_of(nn.Conv2d(6, 4, 1), 'signed'),
            Steps((Step('mul.Tensor', ({'value': 0}, {'constant': 0}), {}),),
                  (torch.rand(4, 1, 1),)))

    def forward(self, image):
        return self.head(self.body(self.act(self.stem(image))))


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('inputs', ['asymmetric', 'zero_points'])
def test_classes_that_do_more_than_torchs(layer_of, tmp_path, dynamic, inputs):
    model = OwnClasses(layer_of, inputs).eval()
    file = write_onnx(request_for(model, (2, 3, 17, 20), dynamic), tmp_path / 'model.onnx')
    assert file.layers == 3
    graph = onnx.load(str(file.path)).graph
    assert {node.domain for node in graph.node} == {''}
    # Before channels with zero points of their own zeros are padded as real numbers.
    assert ('Pad' in {node.op_type for node in graph.node}) == (inputs == 'zero_points')
    for shape in ((2, 3, 17, 20), *(((1, 3, 16, 21), (3, 3, 19, 18)) if dynamic else ())):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = model(x)
        found = OnnxGraph(file.path, threads=1)(x)[0]
        assert ((expected - found).abs() <= 1e-5).float().mean() > 0.97
        assert (expected - found).abs().max() < 0.1 * expected.abs().max()


def test_four_bits(model, tmp_path):
    file = write_onnx(request_for(model), tmp_path / 'model.onnx', format='int4')
    stored = onnx.load(str(file.path)).graph.initializer
    kinds = {tensor.name: tensor.data_type for tensor in stored}
    assert kinds['head.0.codes'] == onnx.TensorProto.INT4
    compare(file.path, model, (1, 3, 16, 20))


def test_the_model_computes_as_before_the_export(model, tmp_path):
    x = torch.rand(1, 3, 16, 20)
    with torch.no_grad():
        before = model(x)[0][0]
        write_onnx(request_for(model), tmp_path / 'model.onnx')
        assert torch.equal(model(x)[0][0], before)
    assert 'forward' not in model.stem.__dict__


class FloatHead(nn.Module):
    """Float layers that read a quantized output, as where only a part of a model is quantized."""

    def __init__(self, layer_of):
        super().__init__()
        self.body = layer_of(nn.Conv2d(3, 6, 3), 'tensor')
        self.body.quantize_output(QParams(torch.tensor([0.02]), torch.tensor([100.]), 0, 255,
                                          unit=False))
        self.head, self.last = nn.Conv2d(6, 5, 3), nn.Linear(6, 4)

    def forward(self, image):
        body = self.body(image)
        return self.head(body), self.head(body.relu()), self.last(body.mean((2, 3)))


def test_the_runtime_leaves_float_layers_float(layer_of, tmp_path):
    torch.manual_seed(0)
    model = FloatHead(layer_of).eval()
    file = write_onnx(request_for(model, (1, 3, 12, 12)), tmp_path / 'model.onnx')
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for want, have in zip(model(x), OnnxGraph(file.path, threads=1)(x)):
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


class Deciding(nn.Module):
    """Its control flow depends on values."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, image):
        return self.layer(image) if float(image.sum()) > 0 else image


def test_a_model_that_cannot_be_traced_is_refused_and_left_alone(layer_of, tmp_path):
    model = Deciding(layer_of(nn.Conv2d(3, 3, 1), 'float'))
    with pytest.raises(ValueError, match="cannot follow 'model'"):
        write_onnx(request_for(model), tmp_path / 'model.onnx')
    assert 'forward' not in model.layer.__dict__
    assert not list(tmp_path.iterdir())


def test_a_graph_of_these_inputs_alone_is_refused(layer_of, tmp_path, monkeypatch):
    """As torch 2.8's exporter gives it where it can follow a model by one branch only."""
    export = torch.onnx.export

    def drafted(*args, **kwargs):
        program = export(*args, **kwargs)
        program._capture_strategy = 'TorchExportDraftExportStrategy'
        return program

    monkeypatch.setattr(torch.onnx, 'export', drafted)
    with pytest.raises(ValueError, match="cannot follow 'model' but for these inputs"):
        write_onnx(request_for(layer_of(nn.Conv2d(3, 3, 1), 'float')), tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="format='int2'.*int8.*int4"):
        write_onnx(request_for(model), tmp_path / 'model.onnx', format='int2')


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match='cannot be read as ONNX'):
        read_metadata(tmp_path / 'missing.onnx')
    graph = onnx.helper.make_graph([], 'empty', [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / 'other.onnx'))
    with pytest.raises(ValueError, match='not written by mmbitsplit'):
        read_metadata(tmp_path / 'other.onnx')
