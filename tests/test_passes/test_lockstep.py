"""Two passes give what re-running the model for every layer gives."""

import copy

import pytest
import torch
from lockstep_nets import Branches, Counter, Optional, TwoStage
from torch import nn

from mmbitsplit.calibration import ReplayPoint, calibrate
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import Sampler

COARSE = dict(weight=dict(num_bits=2), first_last=dict(weight_bits=2, activation_bits=2))
MODES = ('per_tensor', 'per_channel', 'ecaq')


@pytest.mark.parametrize('mode', MODES)
def test_residual_net_agrees_with_naive_calibration(mode, residual_net, images, make_spec,
                                                    assert_like_naive):
    spec = make_spec(activation=dict(mode=mode))
    _, report = assert_like_naive(residual_net, images(), spec)
    assert report.folded_batch_norms and not report.kept_float


@pytest.mark.parametrize('method', [
    dict(type='RoundToNearest'),
    dict(type='BitSplit', init='mse', polish=False, bias_correction=False, guard=False)])
def test_other_methods_agree_with_naive_calibration(method, residual_net, images, make_spec,
                                                    assert_like_naive):
    assert_like_naive(residual_net, images(3), make_spec(weight=dict(num_bits=3), method=method))


def test_branches_agree_with_naive_calibration(seeded, images, make_spec, assert_like_naive):
    assert_like_naive(lambda: seeded(Branches), images(), make_spec())


def test_shapes_may_differ_between_batches(seeded, images, make_spec, assert_like_naive):
    batches = [*images(1, size=6), *images(1, size=10), *images(1, size=16), *images(1, size=8)]
    assert_like_naive(lambda: seeded(Branches), batches, make_spec())


def test_a_single_batch(residual_net, images, make_spec, assert_like_naive):
    assert_like_naive(residual_net, images(1), make_spec())


def test_a_batch_may_not_reach_a_branch(seeded, images, make_spec, assert_like_naive):
    bright = [batch.abs() for batch in images(3)]
    batches = [bright[0], -bright[1], bright[2]]
    _, report = assert_like_naive(lambda: seeded(Optional), batches, make_spec())
    calls = {layer.name: layer.calls for layer in report.layers}
    assert calls == {'stem': 3, 'branch': 2, 'head': 3}


def test_the_batch_that_is_watched_first_may_not_reach_a_branch(seeded, images, make_spec,
                                                                run_model):
    bright = [batch.abs() for batch in images(3)]
    _, report = calibrate(seeded(Optional), [-bright[0], bright[1], -bright[2]], make_spec(),
                          run=run_model)
    calls = {layer.name: layer.calls for layer in report.layers}
    assert calls == {'stem': 3, 'branch': 1, 'head': 3}


def test_every_image_runs_twice_besides_those_that_are_watched_and_compared(
        residual_net, images, make_spec, run_model, layer_calls):
    calls = []
    model = nn.Sequential(Counter(calls.append), residual_net())
    batches = images(5)
    prepared, _ = calibrate(model, batches, make_spec(), run=run_model)
    opened, watched, compared = 1, 1, 1
    assert len(calls) == 2 * len(batches) + opened + watched + 2 * compared
    assert len(layer_calls) == len(prepared.layers)
    assert set(layer_calls.values()) == {2 * len(batches) + compared}


def test_inputs_and_methods_are_left_as_they_were(residual_net, images, make_spec, run_model):
    batches = images(3)
    before = copy.deepcopy(batches)
    model = residual_net()
    prepared, _ = calibrate(model, batches, make_spec(), run=run_model)
    assert all(torch.equal(a, b) for a, b in zip(batches, before, strict=True))
    assert all('forward' not in vars(module) for module in model.modules())
    assert all(len(layer._forward_pre_hooks) == len(
        QuantizedLayer(layer.geometry, layer.weight, None)._forward_pre_hooks)
        for layer in prepared.layers.values())


def test_same_seed_same_bits(residual_net, images, make_spec, run_model, assert_same_state):
    models = [residual_net() for _ in range(2)]
    for index, model in enumerate(models):
        torch.manual_seed(index)  # the global generator plays no part
        calibrate(model, images(), make_spec(), run=run_model)
    assert_same_state(*models)


def test_another_seed_samples_other_positions(residual_net, images, make_spec, run_model):
    taken = []
    for seed in (0, 1):
        spec = make_spec(calibration=dict(seed=seed))
        prepared, _ = calibrate(residual_net(), images(), spec, run=run_model)
        sampler = Sampler(spec.calibration, 4, dict.fromkeys(prepared.layers, 1))
        layer = prepared.layers['blocks.0.conv1']
        taken.append(sampler.positions('blocks.0.conv1', layer, 0, 0, torch.Size((2, 6, 8, 8))))
    assert taken[0].shape == taken[1].shape and not torch.equal(*taken)


def test_an_error_in_the_model_ends_the_run_and_restores_it(residual_net, images, make_spec):
    model, seen = residual_net(), {'runs': 0}

    def run(model, batch):
        seen['runs'] += 1
        number = seen['runs']
        model(batch)
        if number == 7:  # second batch of the quantized pass, later ones still asleep
            raise KeyError('the model fails')

    with pytest.raises(KeyError, match='the model fails'):
        calibrate(model, images(), make_spec(), run=run)
    assert all('forward' not in vars(module) for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('rows', [6, None])
def test_replay_keeps_rows_aligned(rows, seeded, images, make_spec, run_model):
    batches = images(4)
    model, told = seeded(lambda: TwoStage(rows)), []
    model.tell = lambda chosen: told.append(chosen)
    points = [ReplayPoint(model, 'select')]
    _, report = calibrate(model, batches, make_spec(**COARSE), run=run_model,
                          replay_points=points)
    assert len(report.layers) == 4
    opened, watched, kept, compared, *passes = told
    assert torch.equal(kept, compared)
    assert len(passes) == 8
    floats, quantized = passes[:4], passes[4:]
    for index, chosen in enumerate(quantized):
        matches = [torch.equal(chosen, other) for other in floats]
        assert matches[index] and sum(matches) == 1
    assert 'select' not in vars(model)
    told.clear()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    # Without replay the coarse model would have chosen otherwise: the test can fail.
    assert not all(a.shape == b.shape and torch.equal(a, b)
                   for a, b in zip(told, floats, strict=True))


def test_passes_of_different_sizes_are_a_clear_error(seeded, images, make_spec, run_model):
    with pytest.raises(RuntimeError, match="'first' on batch .*replay point"):
        calibrate(seeded(lambda: TwoStage(None)), images(4), make_spec(**COARSE), run=run_model)


class Fork(nn.Module):
    """Takes one way in the first pass over an image and another in the second."""

    def __init__(self, order_only: bool):
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.order_only = order_only

    def forward(self, x):
        y = torch.relu(self.stem(x))
        quantized = getattr(self.stem, 'quantized', False)
        if self.order_only:
            odd = quantized and x.shape[-1] % 2
            first, second = (self.right, self.left) if odd else (self.left, self.right)
            return self.end(second(first(y)))
        return self.end(y if quantized else self.right(self.left(y)))


@pytest.mark.parametrize('order_only', [True, False])
def test_layers_in_another_order_are_a_clear_error(order_only, seeded, images, make_spec,
                                                   run_model):
    batches = [*images(1, size=8), *images(1, size=7)]
    with pytest.raises((RuntimeError, ValueError), match='(left|right)'):
        calibrate(seeded(lambda: Fork(order_only)), batches, make_spec(), run=run_model)
