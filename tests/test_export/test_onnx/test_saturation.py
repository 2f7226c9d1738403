"""The bound is exact: below it no order of inputs saturates, above it some does."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.export.onnx.saturation import input_reach, may_saturate, saturating_layers
from mmbitsplit.functional import code_range
from mmbitsplit.functional.saturation import LARGEST_PAIR, LOWEST_PAIR, pair_range


def product_in_pairs(x, weight):
    """What is computed without VNNI, (K,) by (N, K): sums of neighbours clamped to 16 bits."""
    pairs = (x * weight).reshape(len(weight), -1, 2).sum(-1)
    return np.clip(pairs, LOWEST_PAIR, LARGEST_PAIR).sum(-1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=2, max_size=8).filter(lambda w: len(w) % 2 == 0),
       st.sampled_from([3, 15, 127, 129, 135, 255]), st.randoms(use_true_random=False))
def test_the_bound_against_sums_of_sixteen_bits(weight, reach, random):
    weight = np.array([weight])
    lowest, highest = pair_range(torch.from_numpy(weight))
    bound = reach * highest > LARGEST_PAIR or reach * lowest < LOWEST_PAIR
    found = False
    # The worst inputs for either sign, in the worst order and in any.
    for sign in (1, -1):
        worst = weight[:, np.argsort(-sign * weight[0], kind='stable')]
        mixed = weight[:, random.sample(range(weight.shape[1]), weight.shape[1])]
        for order in (worst, mixed):
            x = np.where(sign * order[0] > 0, reach, 0)
            found |= bool((product_in_pairs(x, order) != (x * order).sum(-1)).any())
    assert found == bound


@pytest.mark.parametrize('value, saturated', [(63, False), (64, False), (65, True), (127, True)])
def test_seven_bits_are_always_safe(value, saturated):
    """255 (64 + 64) is the last that fits."""
    weight = np.full((1, 8), value)
    x = np.full(8, 255)
    assert bool((product_in_pairs(x, weight) != (x * weight).sum(-1)).any()) == saturated
    assert code_range(7, signed=True, narrow_range=True)[1] == 63


def test_signed_inputs_reach_as_far_as_the_bytes_that_they_become():
    assert input_reach(-128, 127) == input_reach(0, 255) == 255
    assert input_reach(-8, 7) == 135 and input_reach(0, 15) == 15


@pytest.mark.parametrize('module', [
    nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(9, 5)],
    ids=lambda module: type(module).__name__)
def test_layers_of_every_kind(layer_of, module):
    wide = layer_of(module, 'ecaq', bits=8)
    assert may_saturate(wide)
    assert not may_saturate(layer_of(module, 'ecaq', bits=7))
    assert not may_saturate(layer_of(module, 'ecaq', bits=8, input_bits=4))
    floats = layer_of(module, 'float', bits=8)
    assert saturating_layers({'a': wide, 'b': floats}) == ['a']


RUN = '''
import sys
import numpy as np
from mmbitsplit.export.onnx.runtimes import OnnxGraph
import torch
graph = OnnxGraph(sys.argv[1], 'openvino', threads=1)
np.save(sys.argv[3], graph(torch.from_numpy(np.load(sys.argv[2])))[0].numpy())
'''


@pytest.mark.parametrize('bits', [8, 7])
def test_a_runtime_without_vnni(layer_of, bits, tmp_path):
    """OpenVINO, with VNNI hidden: wrong where the bound says so, and else as torch."""
    pytest.importorskip('openvino')
    from mmbitsplit.apis import export_onnx
    from mmbitsplit.export.onnx.processor import SaturationWarning, processor_features
    if not processor_features().get('avx2'):
        pytest.skip('not an x86 processor')
    layer = layer_of(nn.Linear(64, 32), 'tensor', bits=bits)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    x = 255 * layer.qparams.scale * (torch.rand(16, 64) > 0.3)
    if bits == 8:
        with pytest.warns(SaturationWarning, match=r'session\.x64quantprecision'):
            file, = export_onnx(model, tmp_path, inputs=(x,))
    else:
        file, = export_onnx(model, tmp_path, inputs=(x,))
    assert file.saturating == (['0'] if bits == 8 else [])
    np.save(tmp_path / 'x.npy', x.numpy())
    done = subprocess.run(
        [sys.executable, '-c', RUN, file.path, tmp_path / 'x.npy', tmp_path / 'y.npy'],
        text=True, capture_output=True, env={**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2'})
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / 'y.npy'), model(x).detach().numpy()
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart > 0.05 if bits == 8 else apart < 1e-5
