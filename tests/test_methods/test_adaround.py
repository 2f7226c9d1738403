"""AdaRound against the paper's formulas, the best rounding there is, and rounding."""

import itertools

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.functional import weight_scale

FLOAT_INPUTS = {'activation': dict(num_bits=None), 'first_last': dict(weight_bits=None)}
ALL = {'rows_per_layer': 256, 'holdout': 0.0}  # nothing held out: all images are fitted to


def request(bits=3, changes=None, **options):
    return read_request({'weight': dict(num_bits=bits), 'calibration': dict(
        rows_per_layer=256, holdout=0.25), 'method': dict(type='AdaRound', **options),
        **(changes or {})})


def rows(count=64, inputs=8, seed=0):
    """Inputs (count, inputs) that go together, which roundings can make use of."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x + 1.5 * torch.randn(count, 1, generator=generator)


def codes_of(prepared):
    return torch.cat([layer.codes.flatten() for layer in prepared.layers.values()])


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_without_iterations_it_is_rounding_bit_for_bit(mode, residual_net, images, run_model,
                                                       assert_same_state):
    ours, theirs = residual_net(), residual_net()
    changes = {'activation': dict(num_bits=4, mode=mode, scale_search='mse')}
    _, report = calibrate(ours, images(), request(changes=changes, iterations=0), run=run_model)
    spec = request(changes={**changes, 'method': dict(type='MSE')})
    calibrate(theirs, images(), spec, run=run_model)
    assert_same_state(ours, theirs)
    for layer in report.layers:  # softened and made whole, they are as they were
        assert layer.unit_errors['learned rounding'] == layer.unit_errors['layers']


def learned_by_the_paper(x, weight, bias, wanted, relu, iterations, rate):
    """Eq. 21 to 25 as they stand, all images in each step; codes (M, N) of 3 bits."""
    scale = weight_scale(weight, 3, 'mse').unsqueeze(1)
    floor = (weight / scale).floor()
    rest = (weight / scale - floor).clamp(0, 1)
    v = (-(1.2 / (rest + 0.1) - 1).log()).requires_grad_()
    adam = torch.optim.Adam([v], lr=rate)
    for step in range(iterations):
        h = (v.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        y = x @ (scale * (floor + h).clamp(-3, 3)).T + bias
        loss = (relu(y) - relu(wanted)).square().sum(1).mean()
        if step >= 0.2 * iterations:
            beta = 20 - 18 * (step / iterations - 0.2) / 0.8
            loss = loss + 0.01 * (1 - (2 * h - 1).abs() ** beta).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (floor + (v >= 0)).clamp(-3, 3).detach(), scale


def test_codes_are_those_of_the_papers_formulas(run_model):
    """Two layers: the first is read through a ReLU, the second gets what the first then gives."""
    torch.manual_seed(1)
    first, last = nn.Linear(8, 6), nn.Linear(6, 4)
    for layer in (first, last):  # no weight beyond the range, where the two differ
        layer.weight.data = layer.weight.data.sign() * (0.1 + layer.weight.data.abs())
        layer.weight.data.clamp_(-0.4, 0.4)
    x, identity = rows(), nn.Identity()
    with torch.no_grad():
        targets = [first(x), last(first(x).relu())]
    codes, scale = learned_by_the_paper(x, first.weight.detach(), first.bias.detach(), targets[0],
                                        torch.relu, 300, 0.02)
    hidden = (x @ (scale * codes).T + first.bias.detach()).relu()
    wanted = [codes, learned_by_the_paper(hidden, last.weight.detach(), last.bias.detach(),
                                          targets[1], identity, 300, 0.02)[0]]
    rounded = [(layer.weight.detach() / weight_scale(layer.weight.detach(), 3, 'mse').unsqueeze(1)
                ).round().clamp(-3, 3) for layer in (first, last)]
    model = nn.Sequential(first, nn.ReLU(), last)
    prepared, report = calibrate(
        model, [x[:40], x[40:]], request(changes={**FLOAT_INPUTS, 'calibration': ALL},
                                         iterations=300, learning_rate=0.02, batch_size=64),
        run=run_model)
    for layer, ours, plain in zip(prepared.layers.values(), wanted, rounded, strict=True):
        assert torch.equal(layer.codes, ours.to(torch.int8))
        assert not torch.equal(ours, plain)
    assert [layer.unit_taken for layer in report.layers] == ['learned rounding'] * 2
    assert [plan.rectified for plan in prepared.plan.layers] == [True, False]


def test_it_comes_near_the_best_rounding_there_is(run_model):
    """By trying all of them, for each output of three layers; it is a descent and not exact."""
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    learned = plain = 0.0  # in parts of the least error
    for seed in range(3):
        torch.manual_seed(seed)
        layer, x = nn.Linear(8, 8), rows(seed=seed)
        weight = layer.weight.detach().clone()
        scale = weight_scale(weight, 3, 'mse').unsqueeze(1)
        floor = (weight / scale).floor()
        each = ((floor.unsqueeze(1) + choices).clamp(-3, 3) * scale.unsqueeze(1)
                - weight.unsqueeze(1)) @ x.T
        least = each.square().mean(-1).amin(1)
        codes = (weight / scale).round().clamp(-3, 3)
        rounded = ((codes * scale - weight) @ x.T).square().mean(1)
        prepared, _ = calibrate(nn.Sequential(layer), [x], request(
            iterations=500, learning_rate=0.02, batch_size=64, regularization=1e-3,
            changes={**FLOAT_INPUTS, 'calibration': ALL}), run=run_model)
        found = ((prepared.layers['0'].codes * scale - weight) @ x.T).square().mean(1)
        assert (found >= least * 0.9999).all()  # the neighbours are all that it chooses among
        assert found.sum() < rounded.sum()
        learned += float(found.sum() / least.sum()) - 1
        plain += float(rounded.sum() / least.sum()) - 1
    assert learned < 0.4 * plain, (learned, plain)


def test_it_lowers_the_error_of_rounding_on_images_not_looked_at(residual_net, images, run_model):
    _, report = calibrate(residual_net(), images(8), request(
        iterations=200, learning_rate=0.01, batch_size=8), run=run_model)
    assert [unit.layers for unit in report.units] == [(layer.name,) for layer in report.layers]
    gains = {layer.name: layer.unit_errors['learned rounding'] / layer.unit_errors['layers']
             for layer in report.layers if layer.role == 'inner'}
    assert len(gains) == 4 and max(gains.values()) < 0.9, gains
    for layer in report.layers:
        assert layer.unit_errors[layer.unit_taken] == min(layer.unit_errors.values())
        assert any('% of the roundings were decided' in note for note in layer.notes)


def test_codes_are_the_same_for_the_same_seed_alone(residual_net, images, run_model):
    codes = []
    for seed in (0, 0, 1):
        prepared, _ = calibrate(residual_net(), images(), request(
            iterations=20, learning_rate=0.1, batch_size=3, changes={'calibration': dict(
                rows_per_layer=256, holdout=0.25, seed=seed)}), run=run_model)
        codes.append(codes_of(prepared))
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_batches_of_images_of_two_sizes_are_drawn_apart(residual_net, images, run_model):
    batches = [*images(3), *images(3, size=12)]
    _, report = calibrate(residual_net(), batches, request(iterations=20, batch_size=64),
                          run=run_model)
    assert all(layer.unit_errors['learned rounding'] < 10 for layer in report.layers)


def test_a_scale_free_push_is_a_pure_number(run_model):
    """Outputs a thousand times as large give the same codes; as published they do not."""
    codes = {}
    for loss, push in (('scale_free', 1.0), ('published', 0.01)):
        for factor in (1.0, 1024.0):
            torch.manual_seed(1)
            layer = nn.Linear(8, 6)
            layer.weight.data *= factor
            layer.bias.data *= factor
            prepared, _ = calibrate(nn.Sequential(layer), [rows()], request(
                iterations=200, learning_rate=0.02, batch_size=64, loss=loss, regularization=push,
                changes={**FLOAT_INPUTS, 'calibration': ALL}), run=run_model)
            codes[loss, factor] = codes_of(prepared)
    assert torch.equal(codes['scale_free', 1.0], codes['scale_free', 1024.0])
    assert not torch.equal(codes['published', 1.0], codes['published', 1024.0])
