"""Down to two bits by every method: solved, packed at two bits, read back, written to ONNX."""

import functools
import math
from collections import Counter

import pytest
import torch
from torch import nn

from mmbitsplit.apis import export_onnx
from mmbitsplit.calibration import METHODS, calibrate, read_request
from mmbitsplit.export import pack_checkpoint, read_checkpoint, summarise
from mmbitsplit.models import describe, rebuild

QUICK = {'LAPQ': dict(max_iterations=0), 'AdaRound': dict(iterations=4),
         'AdaQuant': dict(iterations=4), 'QDrop': dict(iterations=4),
         'BRECQ': dict(iterations=4, input_iterations=2)}
SEVERAL = ('PTMQ',)  # widths of their own, whatever the request says
NAMES = ('0', '2', '4', '6', '8')
# Weights and input of each layer; the image stays float.
WIDTHS = {'W2A4': [(2, 4)] * 5, 'W2A2': [(2, 2)] * 5,
          'mixed': [(8, 8), (2, 3), (3, 2), (4, 8), (2, 4)]}
LEARNED = ('BitSplit', 'PublishedBitSplit', 'AdaRound', 'AdaQuant', 'BRECQ', 'QDrop')
CASES = [(name, widths) for name in LEARNED for widths in WIDTHS] \
    + [(name, 'W2A2') for name in sorted(set(METHODS) - {*LEARNED, *SEVERAL})]
# Inputs and weights as methods leave them: one scale a channel, zero points, learned scales.
WRITTEN = [('BitSplit', 'mixed', 'int8'), ('PublishedBitSplit', 'W2A2', 'int4'),
           ('AdaQuant', 'W2A2', 'int8'), ('QDrop', 'W2A4', 'int4')]


def network():
    """Inputs of one sign and of two, a depthwise convolution, a matrix."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.SiLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 8, 1), nn.Flatten(),
        nn.Linear(8 * 36, 4)).eval()


def images():
    return torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def solved(name, widths):
    """A network quantized by a method at some widths, and what was reported."""
    plan = dict(layers=[dict(name=layer, weight_bits=weight, input_bits=inputs)
                        for layer, (weight, inputs) in zip(NAMES, WIDTHS[widths])])
    plan['layers'][0]['input_bits'] = None
    spec = read_request(dict(calibration=dict(rows_per_layer=128), plan=plan,
                             method=dict(type=name, **QUICK.get(name, {}))))
    return calibrate(network(), list(images()), spec, run=lambda model, batch: model(batch))


@pytest.mark.parametrize(('method', 'widths'), CASES)
def test_codes_fit_and_no_channel_is_lost(method, widths):
    prepared, report = solved(method, widths)
    for layer, (weight_bits, input_bits) in zip(prepared.layers.values(), WIDTHS[widths]):
        codes = layer.codes.flatten(1)
        largest = 2 ** (weight_bits - 1) - 1
        assert codes.abs().amax() <= largest
        assert (codes != 0).any(1).all()  # no channel is all zeros
        assert (layer.weight_scale > 0).all() and layer.weight_scale.isfinite().all()
        inputs = layer.qparams
        if inputs is None:
            continue
        low, high = inputs.limits()
        if inputs.channel_max is None:
            assert inputs.quant_max - inputs.quant_min == 2 ** input_bits - 1
        assert (inputs.scale > 0).all() and inputs.scale.isfinite().all()
        assert ((low <= inputs.zero_point) & (inputs.zero_point <= high)).all()  # zero is a code
    assert all(math.isfinite(row.error) for row in report.layers)


@pytest.mark.parametrize(('method', 'widths'), CASES)
def test_the_file_holds_two_bits_a_code_and_reads_back(method, widths, tmp_path):
    prepared, _ = solved(method, widths)
    wanted, image = dict(zip(NAMES, WIDTHS[widths])), images()[0]
    state = {f'model.{name}': value for name, value in prepared.model.state_dict().items()}
    path = tmp_path / 'quantized.pth'
    torch.save(pack_checkpoint(state, describe(prepared), {}), path)
    found = read_checkpoint(path)
    for row in summarise(found, path.stat().st_size)['layers']:
        outputs, inputs = row['shape'][0], math.prod(row['shape'][1:])
        assert row['weight_bits'] == wanted[row['name']][0]
        assert found.state[f'model.{row["name"]}.codes'].numel() == outputs * -(
            -inputs * row['weight_bits'] // 8)
    again = network()
    rebuild(again, found.description)
    again.load_state_dict({name.removeprefix('model.'): value
                           for name, value in found.state.items()})
    assert torch.equal(again(image), prepared.model(image))


@pytest.mark.parametrize(('method', 'widths', 'format'), WRITTEN)
def test_onnx_computes_the_same_and_says_how_codes_are_stored(method, widths, format, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    import onnx

    from mmbitsplit.export.onnx.runtimes import OnnxGraph
    from mmbitsplit.export.onnx.write_file import read_metadata

    prepared, _ = solved(method, widths)
    image = images()[0]
    file, = export_onnx(prepared.model, tmp_path, inputs=[image], format=format)
    bits = {name: 4 if format == 'int4' and weight <= 4 else 8
            for name, (weight, _) in zip(NAMES, WIDTHS[widths])}
    stored = {tensor.name: tensor.data_type
              for tensor in onnx.load(str(file.path)).graph.initializer}
    kinds = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}
    assert all(stored[f'{name}.codes'] == kinds[bits[name]] for name in NAMES)
    counted = Counter((weight, bits[name]) for name, (weight, _) in zip(NAMES, WIDTHS[widths]))
    assert counted == {(row['code_bits'], row['stored_bits']): row['layers'] for row in file.codes}
    assert f'2-bit codes of {counted[2, bits["2"]]} layers' in file.storage_note
    assert f'take {bits["2"]} bits each' in file.storage_note
    assert file.codes == read_metadata(file.path)['codes']
    found, = OnnxGraph(file.path, threads=1)(image)
    with torch.no_grad():
        wanted = prepared.model(image)
    assert (found - wanted).square().mean() < 1e-3 * wanted.square().mean()
