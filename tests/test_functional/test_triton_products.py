"""Products of bytes: Triton's kernels and torch's own give the whole sums, to the last bit.

Triton's are compiled where there is a CUDA device; elsewhere they run in Triton's interpreter, in
a process of its own, because the interpreter is chosen when Triton is imported.
"""

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmbitsplit.functional.kernels import byte_products
from mmbitsplit.functional.kernels.byte_products import Rounding, Scaling, Windows, pack_weight

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED or not torch.cuda.is_available() else 'cuda'
HAS_TRITON = importlib.util.find_spec('triton') is not None
pytestmark = pytest.mark.filterwarnings('ignore::RuntimeWarning')  # numpy's, of NaN

KERNELS = ['byte_products', pytest.param('triton_products', marks=[
    pytest.mark.skipif(not HAS_TRITON, reason='needs Triton: pip install triton'),
    pytest.mark.skipif(DEVICE == 'cpu' and not INTERPRETED,
                       reason='done by test_in_the_interpreter')])]
# in channels, out channels, kernel, stride, dilation, padding; two in a byte
CONVOLUTIONS = {
    'few channels': (3, 7, (3, 3), (1, 1), (1, 1), (1, 1), False),
    'packed, stride': (64, 40, (3, 3), (2, 2), (1, 1), (1, 1), True),
    'two blocks, packed': (256, 8, (1, 1), (1, 1), (1, 1), (0, 0), True),
    'odd sizes': (33, 33, (2, 3), (1, 2), (2, 1), (2, 0), False)}
SHIFTS = {'signed': (-128, 127, 0), 'relu': (0, 255, -128), 'asymmetric': (-93, 162, -35)}


@pytest.fixture(params=KERNELS)
def kernels(request):
    return importlib.import_module(f'mmbitsplit.functional.kernels.{request.param}')


@pytest.mark.skipif(DEVICE == 'cuda' or INTERPRETED or not HAS_TRITON,
                    reason='the others run in this process, or there is no Triton')
def test_in_the_interpreter():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__]
    done = subprocess.run(command, env={**os.environ, 'TRITON_INTERPRET': '1'}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def rounding_of(shift, scales=(0.03,), along='channel'):
    low, high, zero = SHIFTS[shift]
    each = [torch.full((len(scales),), value, device=DEVICE) for value in (
        float(low), float(high), zero)]
    return Rounding(torch.tensor(scales, device=DEVICE), each[0], each[1],
                    each[2].to(torch.int32), along)


def wanted_codes(x, rounding):
    return (x / rounding.scale).round().clamp(rounding.low, rounding.high)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE)


def draw_codes(*shape, largest=128):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-largest, largest, shape, generator=generator,
                         dtype=torch.int8).to(DEVICE)


def convolved(codes, weight, layer):
    """Whole sums in double precision: codes (A, H, W, C), weight (O, taps, C)."""
    _, _, kernel, stride, dilation, padding, _ = layer
    weight = weight.double().unflatten(1, kernel).permute(0, 3, 1, 2)
    return F.conv2d(codes.double().permute(0, 3, 1, 2), weight, None, stride, padding,
                    dilation).permute(0, 2, 3, 1).to(torch.float32)


@pytest.mark.parametrize('shift', SHIFTS)
@pytest.mark.parametrize('layer', CONVOLUTIONS)
def test_convolutions_are_exact(kernels, layer, shift):
    layer = CONVOLUTIONS[layer]
    inputs, outputs, kernel, stride, dilation, padding, four_bits = layer
    zero = SHIFTS[shift][2]
    codes = draw_codes(outputs, kernel[0] * kernel[1], inputs, largest=8 if four_bits else 128)
    weight = pack_weight(codes, four_bits)
    assert weight.packed == four_bits and torch.equal(weight.codes(), codes)
    x = 3 * draw(2, inputs, 6, 7).permute(0, 2, 3, 1)  # channels first in memory
    rounding = rounding_of(shift)
    bytes_, found = kernels.round_bytes(x, rounding, padding, weight.padded)
    expected = convolved(wanted_codes(x, rounding), codes, layer)
    scale, bias, offset = (draw(outputs, seed=seed) for seed in range(3))
    correction = -(codes.to(torch.int32).sum((1, 2)) * zero).to(torch.int32)
    # Sums as they are.
    plain = Scaling(torch.ones_like(scale), correction)
    windows = Windows(kernel, stride, dilation)
    assert torch.equal(kernels.multiply(weight, bytes_, found, windows, plain), expected)
    # All that becomes of them.
    full = Scaling(scale, correction, bias, relu=True)
    assert torch.equal(kernels.multiply(weight, bytes_, found, windows, full),
                       (expected * scale + bias).clamp_min(0))
    if four_bits:
        of_inputs = convolved(wanted_codes(x, rounding), torch.ones_like(codes[:1]), layer)
        added = Scaling(scale, correction, bias, offset, zero * codes[0].numel(),
                        dtype=torch.float16)
        found_there = kernels.multiply(weight, bytes_, found, windows, added)
        assert torch.equal(found_there,
                           (expected * scale + bias + of_inputs * offset).to(torch.float16))


def test_many_tiles(kernels):
    """Outputs and places that need several programs, and the last of each in part."""
    codes, x = draw_codes(70, 1, 32), 3 * draw(1, 1, 71, 32)
    rounding = rounding_of('relu')
    bytes_, found = kernels.round_bytes(x, rounding)
    scaling = Scaling(torch.ones(70, device=DEVICE),
                      codes.to(torch.int32).sum((1, 2), dtype=torch.int32) * 128)
    y = kernels.multiply(pack_weight(codes, False), bytes_, found, Windows(), scaling)
    expected = wanted_codes(x, rounding).double() @ codes[:, 0].double().t()
    assert torch.equal(y, expected.to(torch.float32))


def test_scales_of_channels_and_padding(kernels):
    """Each channel has its own scale and its own byte for zero, in the padding, too."""
    x = 3 * draw(2, 3, 4, 5)
    scales = (0.02, 0.03, 0.05, 0.07, 0.11)
    zeros = torch.tensor([-128, -3, 0, 9, -60], dtype=torch.int32, device=DEVICE)
    rounding = Rounding(torch.tensor(scales, device=DEVICE), -100.0 + 0 * zeros, 118.0 + 0 * zeros,
                        zeros)
    bytes_, found = kernels.round_bytes(x, rounding, (1, 2))
    assert bytes_.shape == (2, 5, 8, 32) and not bytes_[..., 5:].any() and not found
    assert (bytes_[:, 0, 0, :5] == zeros).all() and (bytes_[:, -1, -1, :5] == zeros).all()
    wrapped = (wanted_codes(x, rounding) + zeros).to(torch.int8)
    assert torch.equal(bytes_[:, 1:-1, 2:-2, :5], wrapped)


@pytest.mark.parametrize('shift', ['signed', 'asymmetric'])
def test_products_are_exact(kernels, shift):
    a, b = 3 * draw(2, 3, 17, 40), (3 * draw(2, 3, 40, 9)).transpose(2, 3)
    sides = [rounding_of(one, (0.02, 0.03, 0.04), 'head') for one in (shift, 'relu')]
    (left, one), (right, other) = (kernels.round_bytes(*pair) for pair in zip((a, b), sides))
    scale = sides[0].scale * sides[1].scale
    y = kernels.multiply_pairs(left, right, one + other, (sides[0].shift, sides[1].shift[:1]),
                               scale, 40)
    rounded = [(x / side.scale.view(-1, 1, 1)).round().clamp(side.low[0], side.high[0]).double()
               for x, side in zip((a, b), sides)]
    expected = (rounded[0] @ rounded[1].mT).to(torch.float32) * scale.view(-1, 1, 1)
    assert torch.equal(y, expected)


def test_what_is_not_a_number_is_not_hidden(kernels):
    x = draw(1, 1, 9, 4)
    rounding, weight = rounding_of('signed'), pack_weight(draw_codes(2, 1, 4), False)
    scaling = Scaling(torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE).int(), relu=True)
    for value, hidden in ((float('inf'), True), (float('nan'), False)):
        x[0, 0, 3, 2] = value
        bytes_, found = kernels.round_bytes(x, rounding)
        y = kernels.multiply(weight, bytes_, found, Windows(), scaling)
        assert y.isfinite().all() == hidden and y.isnan().all() != hidden


def test_halves_go_to_the_even_code(kernels):
    x = torch.arange(-140.0, 140.0, device=DEVICE).view(1, 1, -1, 1) + 0.5
    bytes_, _ = kernels.round_bytes(x, rounding_of('signed', (1.0,)))
    assert torch.equal(bytes_[..., :1].to(torch.float32), x.round().clamp(-128, 127))


def test_torch_multiplies_sizes_that_its_own_product_refuses():
    a, b = draw_codes(3, 5), draw_codes(5, 7)
    assert torch.equal(byte_products.int_mm(a, b).double(), a.double() @ b.double())
