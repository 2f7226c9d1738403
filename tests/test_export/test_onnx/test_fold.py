"""Input scales move into the layer before: nothing changes, and onnxruntime fuses."""

import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.operator_check import executed_operators


def convs(layer_of, inputs='ecaq', **second):
    first = layer_of(nn.Conv2d(6, 8, 3, padding=1), 'ecaq', seed=1)
    return [first, layer_of(nn.Conv2d(8, 5, 3, padding=1), inputs, seed=2, **second)]


@pytest.fixture
def x():
    return torch.rand(1, 6, 12, 12, generator=torch.Generator().manual_seed(0))


def test_powers_of_two_fold_without_any_difference(layer_of, write_chain, run_file, x):
    layers = convs(layer_of, 'powers')
    folded, folds, _ = write_chain(layers, x, 'folded')
    plain, none, _ = write_chain(layers, x, 'plain', fold=False)
    assert folds == [('0', '1')]
    assert none == []
    assert torch.equal(run_file(folded, x, optimize=False), run_file(plain, x, optimize=False))


def test_other_scales_move_few_codes_by_one(layer_of, chain_of, write_chain, run_file, x):
    """Where a value lies between two codes, another order of roundings may take the other."""
    layers = convs(layer_of)
    path, _, _ = write_chain(layers, x)
    expected, found = chain_of(layers)(x), run_file(path, x, optimize=False)
    second = layers[1]
    one_code = second.weight_scale.view(-1, 1, 1) * second.codes.abs().amax()
    assert ((expected - found).abs() <= 1e-5).float().mean() > 0.98
    assert bool(((expected - found).abs() <= 2 * one_code + 1e-5).all())


def test_onnxruntime_fuses_only_what_is_folded(layer_of, write_chain, x):
    layers = convs(layer_of)
    for fold, fused in ((True, 1), (False, 0)):
        counts = executed_operators(write_chain(layers, x, str(fold), fold=fold)[0])
        assert counts.convolutions == 2
        assert counts.integer_convolutions == fused
        assert counts.operators.get('QLinearConv', 0) == fused


def test_integer_kernels_add_a_bias_of_whole_steps_and_round_another(
        layer_of, chain_of, write_chain, run_file, x):
    """Where onnxruntime and torch differ beyond the order of summation, and where not."""
    layers = convs(layer_of)
    differing = []
    for part in (0.0, 0.5):  # of a step
        layers[0].bias.data += part * layers[0].weight_scale
        expected = chain_of(layers)(x)
        found = run_file(write_chain(layers, x, f'{part}')[0], x)
        differing.append(float(((expected - found).abs() > 1e-5).float().mean()))
    assert differing[0] < 0.02 < differing[1]


def test_openvino_runs_both_in_integers(layer_of, write_chain, x):
    pytest.importorskip('openvino')
    layers = [*convs(layer_of), layer_of(nn.Conv2d(5, 5, 1), seed=3)]
    counts = executed_operators(write_chain(layers, x)[0], 'openvino')
    assert counts.integer_convolutions == counts.convolutions == 3


@pytest.mark.parametrize(('inputs', 'tap'), [
    ('tensor', False), ('per_channel', False), ('zero_points', False), ('float', False),
    ('ecaq', True)])
def test_what_cannot_fold_stays_and_computes_the_same(layer_of, chain_of, write_chain, run_file,
                                                      x, inputs, tap):
    """One scale needs none; per-channel values do not enter with unit scale; an output that
    the graph returns must keep its values."""
    layers = convs(layer_of, inputs)
    path, folds, _ = write_chain(layers, x, tap=tap)
    assert folds == []
    found = run_file(path, x, optimize=False)
    torch.testing.assert_close(found, chain_of(layers)(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
def test_zero_points_fold_where_nothing_lies_between(layer_of, chain_of, write_chain, run_file, x,
                                                     bias):
    """They go into the bias of the layer before, and onnxruntime fuses it."""
    layers = [layer_of(nn.Conv2d(6, 8, 3, padding=1, bias=bias), 'zero_points', seed=1),
              layer_of(nn.Conv2d(8, 5, 1), 'zero_points', seed=2)]
    path, folds, _ = write_chain(layers, x, relu=False)
    assert folds == [('0', '1')]
    assert executed_operators(path).integer_convolutions == 1
    expected, second = chain_of(layers, relu=False)(x), layers[1]
    one_code = second.weight_scale.view(-1, 1, 1) * second.codes.abs().amax()
    for optimize in (True, False):
        apart = (run_file(path, x, optimize=optimize) - expected).abs()
        assert (apart <= 1e-5).float().mean() > 0.9
        assert bool((apart <= 2 * one_code + 1e-5).all())


@pytest.mark.parametrize(('padding', 'relu'), [(1, False), (0, True)])
def test_zero_points_do_not_pass_a_relu_or_a_border(layer_of, chain_of, write_chain, run_file, x,
                                                    padding, relu):
    layers = [layer_of(nn.Conv2d(6, 8, 3, padding=1), 'ecaq', seed=1),
              layer_of(nn.Conv2d(8, 5, 3, padding=padding), 'zero_points', seed=2)]
    path, folds, _ = write_chain(layers, x, relu=relu)
    assert folds == []
    torch.testing.assert_close(run_file(path, x, optimize=False), chain_of(layers, relu)(x),
                               rtol=1e-5, atol=1e-4)


def test_a_quantized_output_does_not_fold(layer_of, write_chain, x):
    layers = convs(layer_of)
    layers[0].quantize_output(layer_of(nn.Conv2d(1, 1, 1), 'tensor').qparams)
    assert write_chain(layers, x)[1] == []


def test_a_transposed_convolution_and_linear_layers_fold_too(layer_of, chain_of, write_chain,
                                                            run_file):
    cases = (([nn.ConvTranspose2d(4, 6, 2, 2), nn.Conv2d(6, 3, 1)], (1, 4, 5, 5)),
             ([nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.Conv2d(6, 3, 1)], (1, 4, 5, 5)),
             ([nn.Linear(4, 6), nn.Linear(6, 3)], (7, 4)))
    for modules, shape in cases:
        layers = [layer_of(modules[0], 'powers', seed=1), layer_of(modules[1], 'powers', seed=2)]
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        path, folds, _ = write_chain(layers, values)
        assert folds == [('0', '1')]
        torch.testing.assert_close(run_file(path, values, optimize=False),
                                   chain_of(layers)(values), rtol=1e-5, atol=1e-5)
