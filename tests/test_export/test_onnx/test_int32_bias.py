"""Biases that 32 bits would not hold at their scale get a coarser one, and lose next to nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.int32_bias import LARGEST_BIAS, with_int32_bias
from mmbitsplit.models import layer_geometry


def test_nothing_changes_where_biases_fit(layer_of):
    layer = layer_of(nn.Conv2d(3, 4, 3))
    scale, bias = layer.weight_scale.double().numpy(), layer.product_bias.detach().double().numpy()
    codes, same = with_int32_bias(layer.codes, scale, bias, layer.geometry)
    assert codes is layer.codes
    assert same is scale


@pytest.mark.parametrize('module', [nn.Conv2d(4, 6, 3, groups=2), nn.Linear(4, 6),
                                    nn.ConvTranspose2d(4, 6, 2, groups=2)])
def test_a_large_bias_fits_afterwards_and_the_real_weights_stay(layer_of, module):
    layer = layer_of(module, bits=8)
    scale = np.full(6, 0.01)
    scale[2] = 1e-9  # 10 / 1e-9 is ten times 2^30
    bias = np.full(6, 10.0)
    codes, grown = with_int32_bias(layer.codes, scale, bias, layer_geometry(module))
    assert np.all(np.abs(bias) / grown <= LARGEST_BIAS)
    np.testing.assert_array_equal(np.delete(grown, 2), np.delete(scale, 2))
    outputs = [channels(values, module).double() for values in (layer.codes, codes)]
    for channel in range(6):
        error = (outputs[0][channel] * scale[channel] - outputs[1][channel] * grown[channel])
        assert float(error.abs().max()) <= 0.5 * grown[channel] * (channel == 2)


def channels(codes, module):
    if isinstance(module, nn.ConvTranspose2d):
        return codes.unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
    return codes


def test_onnxruntime_keeps_a_dead_channel_with_a_bias(layer_of, chain_of, write_chain, run_file):
    layers = [layer_of(nn.Conv2d(3, 4, 3), seed=1), layer_of(nn.Conv2d(4, 4, 1), seed=2)]
    layers[0].weight_scale[1] = 1e-12
    layers[0].weight_quantizer.refresh()
    layers[0].bias.data[1] = 2.0
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    path, _, _ = write_chain(layers, x)
    torch.testing.assert_close(run_file(path, x), chain_of(layers)(x), rtol=0.01, atol=0.01)
