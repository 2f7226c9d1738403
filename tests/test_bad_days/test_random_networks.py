"""Networks and requests that nobody chose: quantization finishes, is finite, no worse, reloads."""

import copy
import dataclasses
import warnings

import hypothesis.strategies as some
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from mmbitsplit.calibration import METHODS, calibrate
from mmbitsplit.models import QuantizedLayer, describe, rebuild
from mmbitsplit.structures import QuantSpec

RUNS = settings(max_examples=40, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity, nn.Tanh)


class RandomNet(nn.Module):
    """Convolutions one after another, some shared, grouped, normed or with a shortcut; a head.

    Args:
        blocks: A dict a block: kernel, stride, groups, dilation, bias, norm, activation, shared
            (calls the block before once more), shortcut.
        channels: Of all blocks, a multiple of all groups.
        head: ``'linear'``, ``'conv'`` or ``'both'``.
        seed: Of the weights.
    """

    def __init__(self, blocks: list[dict], channels: int, head: str, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.plans = blocks
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(self._block(plan, channels) for plan in blocks)
        self.linear = nn.Linear(channels, 3) if head != 'conv' else None
        self.conv = nn.Conv2d(channels, 2, 1) if head != 'linear' else None
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.running_var, 0.3, 2.0)

    @staticmethod
    def _block(plan: dict, channels: int) -> nn.Sequential:
        kernel = plan['kernel']
        return nn.Sequential(
            nn.Conv2d(channels, channels, kernel, stride=plan['stride'], bias=plan['bias'],
                      padding=plan['dilation'] * (kernel // 2), dilation=plan['dilation'],
                      groups=plan['groups']),
            nn.BatchNorm2d(channels) if plan['norm'] else nn.Identity(),
            plan['activation']())

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        for number, plan in enumerate(self.plans):
            before = x
            x = self.blocks[number](x)
            if plan['shared']:
                x = self.blocks[number](x)
            if plan['shortcut'] and x.shape == before.shape:
                x = x + before
        heads = [] if self.conv is None else [self.conv(x)]
        return heads if self.linear is None else [*heads, self.linear(x.mean((2, 3)))]


def blocks_of(channels: int) -> some.SearchStrategy:
    divisors = [number for number in (1, 2, 3, 4, 6, 8) if channels % number == 0]
    return some.lists(some.fixed_dictionaries(dict(
        kernel=some.sampled_from([1, 3]), stride=some.sampled_from([1, 1, 2]),
        dilation=some.sampled_from([1, 1, 2]), groups=some.sampled_from(divisors),
        bias=some.booleans(), norm=some.booleans(), activation=some.sampled_from(ACTIVATIONS),
        shared=some.booleans(), shortcut=some.booleans())), max_size=3)


networks = some.sampled_from([1, 2, 4, 6, 8]).flatmap(lambda channels: some.builds(
    RandomNet, blocks_of(channels), some.just(channels),
    some.sampled_from(['linear', 'conv', 'both']), some.integers(0, 1000)))
bits = some.integers(2, 8)
requests = some.fixed_dictionaries(dict(
    weight=some.fixed_dictionaries(dict(num_bits=bits, scale_search=some.sampled_from(
        ['mse', 'minmax']))),
    activation=some.fixed_dictionaries(dict(
        num_bits=some.one_of(bits, some.none()),
        mode=some.sampled_from(['ecaq', 'per_tensor', 'per_channel']),
        symmetry=some.sampled_from(['auto', 'signed', 'asymmetric']),
        strength=some.one_of(some.just('auto'), some.floats(0, 1)))),
    first_last=some.fixed_dictionaries(dict(weight_bits=some.one_of(bits, some.none()),
                                            activation_bits=some.one_of(bits, some.none()))),
    method=some.one_of(
        some.fixed_dictionaries(dict(
            type=some.just('BitSplit'), init=some.sampled_from(['mse', 'error_feedback']),
            polish=some.booleans(), max_sweeps=some.integers(1, 6),
            bias_correction=some.booleans())),
        some.just(dict(type='RoundToNearest'))),
    calibration=some.fixed_dictionaries(dict(
        seed=some.integers(0, 100), rows_per_layer=some.sampled_from([64, 200, 1000]),
        holdout=some.sampled_from([0.0, 0.125, 0.5])))))


def batches_of(sizes: list[tuple[int, int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(count, 3, height, width, generator=generator) - 0.3
            for count, height, width in sizes]


batch_sizes = some.lists(some.tuples(
    some.integers(1, 2), some.integers(1, 13), some.integers(1, 13)), min_size=1, max_size=3)
LEARNED = {  # methods that solve units, two steps each
    name: {'type': name, **{field.name: 2 for field in dataclasses.fields(cls)
                            if field.name.endswith('iterations')}}
    for name, cls in METHODS.items() if cls.solves == 'unit'}


@RUNS
@given(networks, requests, batch_sizes)
def test_any_small_network_is_quantized(network, request, sizes):
    assert_quantized(network, request, sizes)


@settings(RUNS, max_examples=5 * len(LEARNED))
@given(networks, requests, batch_sizes, some.sampled_from(sorted(LEARNED)))
def test_any_small_network_is_learned(network, request, sizes, method):
    report = assert_quantized(network, {**request, 'method': LEARNED[method]}, sizes)
    for layer in report.layers:
        errors = layer.unit_errors
        assert len(errors) > 1 or any('layer by layer alone' in note for note in layer.notes)
        if errors:
            assert errors[layer.unit_taken] == min(
                error for error in errors.values() if error == error)


def assert_quantized(network, request, sizes):
    network.eval()
    batches, fresh = batches_of(sizes), copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        prepared, report = calibrate(network, batches, QuantSpec.from_dict(request),
                                     run=lambda model, batch: model(batch))
    wanted = [name for name, module in fresh.named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sorted(layer.name for layer in report.layers) == sorted(wanted)
    for layer in report.layers:
        assert layer.error >= 0
        if request['method'].get('type') == 'BitSplit':  # the guard sees to that
            assert layer.error <= layer.error_rounding, layer
    rebuild(fresh, describe(prepared))
    fresh.load_state_dict(network.state_dict())
    assert sum(isinstance(module, QuantizedLayer) for module in fresh.modules()) == len(wanted)
    with torch.no_grad():
        for batch in batches:
            for ours, theirs in zip(network(batch), fresh.eval()(batch), strict=True):
                assert torch.isfinite(ours).all() and torch.equal(ours, theirs)
    return report


@RUNS
@given(some.dictionaries(some.sampled_from([
    'weight', 'activation', 'first_last', 'method', 'calibration', 'overrides', 'scope', 'bits']),
    some.recursive(some.one_of(some.none(), some.booleans(), some.integers(), some.text(),
                               some.floats(allow_nan=True)),
                   lambda inner: some.one_of(some.lists(inner, max_size=2), some.dictionaries(
                       some.sampled_from(['num_bits', 'mode', 'type', 'seed', 'match', 'x']),
                       inner, max_size=2)), max_leaves=4)))
def test_any_request_is_taken_or_refused_in_words(request):
    try:
        spec = QuantSpec.from_dict(request)
    except ValueError as error:
        assert str(error)
    else:
        assert QuantSpec.from_dict(spec.to_dict()) == spec
