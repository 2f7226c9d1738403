"""A model of several widths goes through files and ONNX like one of a single width."""

import math

import pytest
import torch
from torch import nn

from mmbitsplit.apis import export_onnx
from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.export import pack_checkpoint, read_checkpoint, summarise
from mmbitsplit.models import describe, rebuild

WIDTHS = {'0': (8, None), '2': (2, 8), '4': (3, 4), '6': (5, 8), '8': (None, None), '10': (7, 3)}


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), *(nn.Conv2d(6, 6, 3) for _ in range(4)), nn.Conv2d(6, 4, 1)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).eval()


@pytest.fixture(scope='module')
def mixed():
    """A network quantized by a plan of many widths, and images for it."""
    images = torch.rand(4, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    request = read_request(dict(calibration=dict(rows_per_layer=256), plan=dict(layers=[
        dict(name=name, weight_bits=weight, input_bits=inputs)
        for name, (weight, inputs) in WIDTHS.items()])))
    prepared, _ = calibrate(network(), list(images), request,
                            run=lambda model, batch: model(batch))
    return prepared, images[0]


def test_codes_are_packed_at_their_widths_and_read_back(mixed, tmp_path):
    prepared, image = mixed
    state = {f'model.{name}': value for name, value in prepared.model.state_dict().items()}
    path = tmp_path / 'quantized.pth'
    torch.save(pack_checkpoint(state, describe(prepared), {}), path)
    found = read_checkpoint(path)
    rows = {row['name']: row for row in summarise(found, path.stat().st_size)['layers']}
    assert {name: (row['weight_bits'], row['input_bits']) for name, row in rows.items()} == {
        name: widths for name, widths in WIDTHS.items() if widths[0]}
    for name, row in rows.items():
        channels, inputs = row['shape'][0], math.prod(row['shape'][1:])
        assert found.state[f'model.{name}.codes'].numel() == channels * math.ceil(
            inputs * row['weight_bits'] / 8)
    again = network()
    rebuild(again, found.description)
    again.load_state_dict({name.removeprefix('model.'): value
                           for name, value in found.state.items()})
    assert torch.equal(again(image), prepared.model(image))


@pytest.mark.parametrize('format', ['int8', 'int4'])
def test_the_exported_model_computes_the_same(mixed, tmp_path, format):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from mmbitsplit.export.onnx.runtimes import OnnxGraph
    prepared, image = mixed
    file, = export_onnx(prepared.model, tmp_path, inputs=[image], format=format)
    found, = OnnxGraph(file.path, threads=1)(image)
    with torch.no_grad():
        wanted = prepared.model(image)
    assert (found - wanted).square().mean() < 1e-4 * wanted.square().mean()
