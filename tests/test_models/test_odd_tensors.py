"""Tensors that torch allows and that are no batch of maps: sparse, nested, complex, one image."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import layer_kind, watch
from mmbitsplit.models.watch.data_flow import IMAGE

NESTED = pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')


class Graph(nn.Module):
    """Two layers with a sparse product between, as in graph networks."""

    def __init__(self, layout):
        super().__init__()
        self.a, self.o = nn.Linear(8, 16), nn.Linear(16, 4)
        graph = (torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < .4).float()
        self.register_buffer('graph', graph.to_sparse() if layout == 'coo'
                             else graph.to_sparse_csr() if layout == 'csr' else graph)

    def forward(self, x):
        return self.o(torch.relu(torch.mm(self.graph, self.a(x))))


class Spectral(nn.Module):
    """A product in the frequencies between two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        spectrum = torch.fft.rfft2(self.a(x)) * torch.tensor(1 + 2j)
        spectrum = torch.view_as_complex(torch.view_as_real(spectrum) * 2)
        return self.c(torch.relu(self.b(torch.fft.irfft2(spectrum))))


class LoRA(nn.Linear):
    """Adapted, and before training the same as without: B is zero."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.A, self.B = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return super().forward(x) + self.B(self.A(x))


class Encoder(nn.Module):
    """torch's encoder makes nested tensors of padded sequences."""

    def __init__(self, nested):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.out = nn.Linear(8, 4)

    def forward(self, x, padded):
        return self.out(self.encoder(x, src_key_padding_mask=padded))


def make(seed, build, *args):
    torch.manual_seed(seed)
    return build(*args).eval()


def inputs(*shape, count=4):
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.filterwarnings('ignore:Sparse CSR')
@pytest.mark.parametrize('layout', ['coo', 'csr'])
def test_values_flow_through_sparse_products_as_through_dense_ones(layout):
    model, dense = make(0, Graph, layout), make(0, Graph, 'dense')
    flow = watch(model, lambda: model(inputs(6, 8)[0]))
    assert flow.sources['o'] == {'a'} and flow.feeds['a'] == {'o'}
    report = quantize_model(model, inputs(6, 8))
    assert [part.name for part in report.kept_float] == ['<matmul>']
    quantize_model(dense, inputs(6, 8), dict(products=None))  # nor is the sparse one in codes
    assert [layer.role for layer in report.layers] == ['first', 'last']
    assert all(layer.error < 1e-3 for layer in report.layers)
    wanted = dense.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items()
               if name != 'graph')


def test_a_tensor_made_sparse_in_forward_keeps_its_sources():
    class Made(Graph):
        def forward(self, x):
            return self.o(torch.relu(torch.mm(self.graph, self.a(x))).to_sparse().to_dense())

    model = make(0, Made, 'coo')
    flow = watch(model, lambda: model(inputs(6, 8)[0]))
    assert flow.sources['o'] == {'a'} and flow.peak_bytes > 0


def test_complex_tensors_carry_values():
    model = make(0, Spectral)
    x = inputs(2, 3, 8, 8)[0]
    flow = watch(model, lambda: model(x), inputs=x)
    assert flow.sources == {'a': {IMAGE}, 'b': {'a'}, 'c': {'b'}}
    report = quantize_model(model, inputs(2, 3, 8, 8))
    assert [(layer.name, layer.role) for layer in report.layers] == [
        ('a', 'first'), ('b', 'inner'), ('c', 'last')]


def test_an_image_without_a_batch_is_a_batch_of_one():
    def net():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode='reflect'), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))

    images = inputs(3, 12, 12)
    for mode in ('per_tensor', 'per_channel', 'ecaq'):
        alone, batched = make(0, net), make(0, net)
        request = dict(activation=dict(mode=mode))
        quantize_model(alone, images, request)
        quantize_model(batched, [image.unsqueeze(0) for image in images], request)
        theirs = batched.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in alone.state_dict().items())
        with torch.no_grad():
            assert torch.equal(alone(images[0]), batched(images[0].unsqueeze(0))[0])


@pytest.mark.parametrize('trained', [False, True])
def test_a_layer_that_holds_layers_is_quantized_with_them(trained):
    model = make(0, lambda: nn.Sequential(LoRA(8, 16), nn.ReLU(), LoRA(16, 4)))
    if trained:
        nn.init.normal_(model[0].B.weight), nn.init.normal_(model[2].B.weight)
    x = inputs(6, 8)
    with torch.no_grad():
        wanted = model(x[0])
    report = quantize_model(model, x)
    assert {layer.name for layer in report.layers} == {
        '0.A', '0.B', '0.linear_0', '2.A', '2.B', '2.linear_0'}
    assert not report.kept_float
    assert isinstance(model[0], LoRA) and layer_kind(model[0]) is None
    with torch.no_grad():
        assert (model(x[0]) - wanted).square().mean() < 0.02 * wanted.var()


@NESTED
def test_layers_of_nested_tensors_stay_float_with_the_reason():
    model = make(0, Encoder, True)
    padded = torch.zeros(2, 6, dtype=torch.bool)
    padded[0, -2:] = True
    report = quantize_model(model, [(x, padded) for x in inputs(2, 6, 8)])
    assert [layer.name for layer in report.layers] == ['out']
    kept = {left.name: left.reason for left in report.kept_float}
    for name in ('linear1', 'linear2'):
        assert 'nested tensor' in kept[f'encoder.layers.0.{name}']
        assert 'enable_nested_tensor=False' in kept[f'encoder.layers.0.{name}']
    assert model(inputs(2, 6, 8)[0], padded).shape == (2, 6, 4)


@NESTED
def test_without_nested_tensors_they_are_quantized():
    model = make(0, Encoder, False)
    padded = torch.zeros(2, 6, dtype=torch.bool)
    padded[0, -2:] = True
    report = quantize_model(model, [(x, padded) for x in inputs(2, 6, 8)])
    assert {'encoder.layers.0.linear1', 'encoder.layers.1.linear2', 'out'} <= {
        layer.name for layer in report.layers}


@NESTED
def test_a_nested_tensor_on_a_later_batch_alone_is_told_by_the_layer():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x, nested=False):
            y = self.b(torch.nested.nested_tensor(list(self.a(x))) if nested else self.a(x))
            return torch.nested.to_padded_tensor(y, 0.0) if nested else y

    first, second = inputs(2, 6, 8, count=2)
    with pytest.raises(ValueError, match=r"Layer 'b' gets a nested tensor on batch 1.*skip=True"):
        quantize_model(make(0, Sometimes), [(first,), (second, True)])
