"""A layer of several widths is written as it is in use."""

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.saturation import may_saturate
from mmbitsplit.export.onnx.storage import count_widths
from mmbitsplit.export.onnx.stored_weight import stored_weight
from mmbitsplit.functional import (
    midrise_codes,
    midrise_offset,
    narrower_codes,
    narrower_qparams,
)
from mmbitsplit.models import apply, set_bits
from mmbitsplit.structures import QParams

LAYERS = {
    'conv': lambda: nn.Conv2d(6, 4, 3, 2, 1),
    'grouped': lambda: nn.Conv2d(6, 4, 3, groups=2),
    'transposed': lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1),
    'transposed_grouped': lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
    'linear': lambda: nn.Linear(6, 4),
}
WIDTHS = (6, 4, 3, 2)


def nested(layer, nesting='floor', outputs=True):
    """Gives a layer all widths, of weights and of inputs."""
    whole = layer.solution()
    weight = torch.randn(whole.codes.shape, generator=torch.Generator().manual_seed(7))
    codes, parts = midrise_codes(weight, torch.tensor(0.02), 8), []
    if nesting == 'planes':
        codes = codes.clamp(min=-127)
    for num_bits in (8, *WIDTHS):
        scale = whole.weight_scale / 16 * 2 ** (8 - num_bits) * (1 + num_bits / 40)
        parts.append(replace(
            whole, codes=narrower_codes(codes, 8, num_bits, nesting), num_bits=num_bits,
            weight_scale=scale, nesting=nesting,
            weight_offset=midrise_offset(scale) if nesting == 'floor' else None))
    inputs = whole.qparams
    narrower = () if inputs is None else tuple(
        narrower_qparams(inputs, 0.9 * 2 ** (8 - num_bits), num_bits) for num_bits in WIDTHS)
    output = QParams(torch.tensor([0.02]), torch.tensor([0.0]), -128, 127, unit=False)
    apply(layer, replace(parts[0], narrower=tuple(parts[1:]), narrower_inputs=narrower,
                         output_qparams=output if outputs else None))
    return layer.eval()


@pytest.mark.parametrize('inputs', ['float', 'tensor', 'ecaq', 'zero_points', 'per_channel'])
@pytest.mark.parametrize('name', LAYERS)
def test_every_width_computes_what_torch_does(layer_of, write_chain, run_file, name, inputs):
    layer = nested(layer_of(LAYERS[name](), inputs), outputs=False)
    x = torch.randn((3, 6) if name == 'linear' else (2, 6, 9, 8),
                    generator=torch.Generator().manual_seed(3))
    found = []
    for weight, activation in ((8, 8), (4, 3), (2, 8)):
        layer.use(weight, None if inputs == 'float' else activation)
        path, _, _ = write_chain([layer], x)
        with torch.no_grad():
            expected = layer(x)
        torch.testing.assert_close(run_file(path, x), expected, rtol=1e-4, atol=1e-4)
        found.append(expected)
    assert not torch.allclose(found[0], found[1])


def integers(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize('num_bits', [2, 4, 6])
def test_floor_codes_are_odd_codes_without_an_offset(layer_of, write_chain, num_bits):
    layer, x = nested(layer_of(nn.Conv2d(6, 4, 3), 'tensor')), torch.randn(2, 6, 9, 8)
    layer.use(num_bits)
    path, _, _ = write_chain([layer], x)
    stored = integers(path)
    codes = stored['0.codes']
    assert codes.dtype == 'int8' and set((codes % 2).flatten()) == {1}
    assert (codes == 2 * layer.codes.numpy() + 1).all()
    torch.testing.assert_close(torch.from_numpy(stored['0.weight_scale'].copy()),
                               layer.weight_scale / 2)
    assert not any('offset' in name for name in stored)


def test_two_layers_fold_and_run_in_integers(layer_of, write_chain, run_file):
    layers = [nested(layer_of(nn.Conv2d(6, 6, 3, bias=False), 'ecaq', seed=seed),
                     outputs=seed == 1) for seed in (0, 1)]
    model, x = nn.Sequential(*layers), torch.rand(2, 6, 12, 12)
    for num_bits in (3, 8):
        set_bits(model, num_bits)
        path, folds, _ = write_chain(layers, x, relu=False)
        assert folds
        with torch.no_grad():
            expected = model(x)
        found = run_file(path, x)
        assert (found - expected).abs().max() <= 0.0201  # a step of the output
        assert (found - expected).abs().mean() < 1e-3


def test_eight_bits_keep_half_a_step_and_planes_are_as_they_are(layer_of):
    floor, planes = (nested(layer_of(nn.Conv2d(6, 4, 3), 'tensor'), nesting)
                     for nesting in ('floor', 'planes'))
    stored = stored_weight(floor)
    assert stored.half and torch.equal(stored.codes, floor.codes) and not may_saturate(floor)
    floor.use(6)
    assert not stored_weight(floor).half and stored_weight(floor).num_bits == 7
    planes.use(4)
    assert torch.equal(stored_weight(planes).codes, planes.codes)
    assert stored_weight(planes).num_bits == 4


def test_what_stands_for_four_bits_takes_eight():
    assert count_widths([(4, 5), (4, 4), (3, 4)], 'int4') == [
        {'code_bits': 3, 'stored_bits': 4, 'layers': 1},
        {'code_bits': 4, 'stored_bits': 4, 'layers': 1},
        {'code_bits': 4, 'stored_bits': 8, 'layers': 1}]


def test_another_offset_is_refused(layer_of, write_chain):
    layer = nested(layer_of(nn.Conv2d(6, 4, 3), 'tensor'))
    whole = layer.solution()
    layer.install(replace(whole, weight_offset=whole.weight_offset * 1.1))
    with pytest.raises(ValueError, match="'0' has an offset of every output channel"):
        write_chain([layer], torch.randn(2, 6, 9, 8))
