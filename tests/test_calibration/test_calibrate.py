"""What calibrate reports, and which requests it refuses."""

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import Progress, calibrate
from mmbitsplit.models import QuantizedLayer


def outputs(model, batches):
    with torch.no_grad():
        return [torch.cat([y.flatten() for y in model(batch)]) for batch in batches]


def test_report_has_every_layer_and_progress_is_told(residual_net, images, make_spec, run_model):
    steps: list[Progress] = []
    model = residual_net()
    prepared, report = calibrate(model, images(), make_spec(), run=run_model,
                                 progress=steps.append)
    names = [plan.name for plan in prepared.plan.layers]
    assert sorted(layer.name for layer in report.layers) == sorted(names)
    assert len(report.folded_batch_norms) == 5
    floats = [step for step in steps if step.stage == 'float']
    layers = [step for step in steps if step.stage == 'layers']
    assert [step.done for step in floats] == [1, 2, 3, 4]
    assert [step.done for step in layers] == list(range(1, len(names) + 1))
    assert all(step.total == len(names) for step in layers)
    assert [step.layer for step in layers] == report.layers
    for layer in report.layers:
        first, last = layer.name == 'stem', layer.name in ('classify', 'regress')
        assert layer.weight_bits == (8 if first or last else 4)
        assert (layer.activation_bits is None) == first
        assert layer.rows >= 1 and layer.calls == 4 and layer.error >= 0
        assert layer.weight_scale[0] > 0
    assert all(value >= 0 for value in report.seconds.values())
    assert sum(report.seconds[name] for name in (
        'watch', 'float_forward', 'quantized_forward', 'sampling', 'solve')
        ) <= report.seconds['calibration']
    assert sum(report.seconds[name] for name in (
        'solve_scales', 'solve_statistics', 'solve_codes')) <= report.seconds['solve']
    assert report.peak_rss_bytes > report.estimated_bytes > 0
    assert report.calibration == {'num_batches': 4, 'seed': 0, 'processes': 1,
                                  'layers_taken_over': 0}


def test_reports_name_the_unit_of_each_layer(residual_net, images, make_spec, run_model):
    told: list[Progress] = []
    _, report = calibrate(residual_net(), images(), make_spec(), run=run_model,
                          progress=told.append)
    units = {layer.name: layer.unit for layer in report.layers}
    assert units == {'stem': 'stem', 'classify': 'classify', 'regress': 'regress',
                     'blocks.0.conv1': 'blocks.0', 'blocks.0.conv2': 'blocks.0',
                     'blocks.1.conv1': 'blocks.1', 'blocks.1.conv2': 'blocks.1'}
    assert {step.layer.name: step.layer.unit for step in told if step.layer} == units
    assert {layer: unit.name for unit in report.units for layer in unit.layers} == units


def test_a_unit_that_cannot_be_is_refused_before_anything_is_solved(residual_net, images,
                                                                    make_spec, run_model):
    told: list[Progress] = []
    model, spec = residual_net(), make_spec(overrides=[dict(match='blocks.0.bn1', unit='module')])
    with pytest.raises(ValueError, match='matches no module that calls quantized layers'):
        calibrate(model, images(), spec, run=run_model, progress=told.append)
    assert not told and not any(isinstance(part, QuantizedLayer) for part in model.modules())


def test_model_is_quantized_and_stays_near_the_float_model(residual_net, images, make_spec,
                                                           run_model):
    batches, unseen = images(8), images(4, seed=99)
    model = residual_net().train()
    wanted = outputs(residual_net(), unseen)
    errors = {}
    for name, bits in (('coarse', 2), ('fine', 8)):
        model = residual_net().train()
        calibrate(model, batches, make_spec(weight=dict(num_bits=bits), calibration=dict(
            rows_per_layer=2048)), run=run_model)
        assert not model.training
        layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
        assert len(layers) == 7 and all(layer.quantized for layer in layers)
        assert not any(type(m) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) for m in model.modules())
        errors[name] = sum(float((a - b).square().mean())
                           for a, b in zip(outputs(model, unseen), wanted, strict=True))
    energy = sum(float(y.var()) for y in wanted)
    assert errors['fine'] < 0.001 * energy < errors['coarse'] < 0.5 * energy


def test_bit_split_beats_rounding_end_to_end(residual_net, images, make_spec, run_model):
    """Over three sets of images: on one of them rounding may be lucky."""
    smooth, errors = nn.AvgPool2d(3, 1, 1), dict(RoundToNearest=0.0, BitSplit=0.0)
    for first in (1, 11, 21):
        batches, unseen = ([smooth(batch) * 2 for batch in images(8, seed=seed)]
                           for seed in (first, first + 1))
        wanted = outputs(residual_net(), unseen)
        for method in errors:
            model = residual_net()
            calibrate(model, batches, make_spec(
                weight=dict(num_bits=3), method=dict(type=method),
                calibration=dict(rows_per_layer=2048)), run=run_model)
            errors[method] += sum(float((a - b).square().mean()) for a, b in zip(
                outputs(model, unseen), wanted, strict=True))
    assert errors['BitSplit'] < 0.6 * errors['RoundToNearest']


def test_weights_only(residual_net, images, make_spec, run_model):
    prepared, report = calibrate(residual_net(), images(), make_spec(
        activation=dict(num_bits=None)), run=run_model)
    assert all(layer.activation_bits is None for layer in report.layers)
    assert all(layer.qparams is None for layer in prepared.layers.values())


def test_scope_and_overrides_leave_layers_in_float(residual_net, images, make_spec, run_model):
    spec = make_spec(scope='stem+blocks', overrides=[
        dict(match='blocks.1.*', skip=True), dict(match='blocks.0.conv2', weight=dict(num_bits=6))])
    model = residual_net()
    _, report = calibrate(model, images(), spec, run=run_model)
    assert {layer.name: layer.weight_bits for layer in report.layers} == {
        'stem': 8, 'blocks.0.conv1': 4, 'blocks.0.conv2': 6}
    reasons = {kept.name: kept.reason for kept in report.kept_float}
    assert 'scope' in reasons['classify'] and 'override' in reasons['blocks.1.conv1']
    assert isinstance(model.classify, nn.Linear) and 'bn1' in dict(
        model.blocks[1].named_children())


@pytest.mark.parametrize('changes, message', [
    (dict(method=dict(type='Bitspilt')), "'Bitspilt'.*did you mean 'BitSplit'"),
    (dict(method=dict(type='BitSplit', max_sweep=3)), "'max_sweep'.*did you mean 'max_sweeps'"),
    (dict(scope='blocs'), "no part 'blocs'.*did you mean 'blocks'"),
    (dict(budget=dict(weight_bits=4)), 'quantization.budget asks for widths that are not chosen'),
    (dict(overrides=[dict(match='block.*')]), r"overrides\[0\].*'block\.\*' matches no layer"),
    (dict(overrides=[dict(match='regres')]), r"'regres' matches no layer; did you mean 'regress'"),
    (dict(method=dict(type='GPTQ')), "'GPTQ' is not known; here it is 'ErrorFeedback'"),
])
def test_what_is_not_known_is_named_with_the_nearest(changes, message, residual_net, images,
                                                     make_spec, run_model):
    model = residual_net()
    with pytest.raises(ValueError, match=message):
        calibrate(model, images(), make_spec(**changes), run=run_model)
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())


def test_float_weights_are_there_until_the_end_and_gone_afterwards(residual_net, images, make_spec,
                                                                   run_model, monkeypatch):
    release, moved = QuantizedLayer.release_float, []

    def at_the_end(layer):
        x = torch.ones(1, *([layer.geometry.in_channels] if layer.geometry.kind == 'linear'
                            else [layer.geometry.in_channels, 5, 5]))
        moved.append(float((layer.float_forward(x) - layer(x)).abs().max()))
        release(layer)

    monkeypatch.setattr(QuantizedLayer, 'release_float', at_the_end)
    prepared, _ = calibrate(residual_net(), images(), make_spec(), run=run_model)
    assert len(moved) == 7 and min(moved) > 0
    assert not prepared.turned
    for layer in prepared.layers.values():
        with pytest.raises(RuntimeError, match='released'):
            layer.float_rows()


@pytest.mark.parametrize('batches', [[], ()])
def test_no_batches(batches, residual_net, make_spec, run_model):
    with pytest.raises(ValueError, match='empty.*at least one'):
        calibrate(residual_net(), batches, make_spec(), run=run_model)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_bad_image_is_named_with_the_layer(value, residual_net, images, make_spec, run_model):
    batches = images(3)
    batches[1][0, 0, 2, 2] = value
    model = residual_net()
    with pytest.raises(ValueError, match="'stem' gets 1 of 384.*on b.jpg"):
        calibrate(model, batches, make_spec(), run=run_model, labels=['a.jpg', 'b.jpg', 'c.jpg'])
    assert all('forward' not in vars(module) for module in model.modules())


def test_a_model_that_overflows_is_named_by_its_layer(residual_net, images, make_spec, run_model):
    model = residual_net()
    model.blocks[0].bn2.weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match="'blocks.1.conv1'.*batch 0"):
        calibrate(model, images(), make_spec(), run=run_model)


class Extra(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.unused = net, nn.Linear(3, 3)

    def forward(self, x):
        return self.net(x)


def test_a_layer_that_is_never_reached(residual_net, images, make_spec, run_model):
    with pytest.raises(ValueError, match="never reached.*unused.*match='unused', skip=True"):
        calibrate(Extra(residual_net()), images(), make_spec(), run=run_model)
    skipped = make_spec(overrides=[dict(match='unused', skip=True)])
    unreached = make_spec(calibration=dict(unreached='float'))
    for spec, reason in ((skipped, 'skipped by an override'), (make_spec(scope='net'), 'scope'),
                         (unreached, 'no calibration image reaches it')):
        _, report = calibrate(Extra(residual_net()), images(), spec, run=run_model)
        assert len(report.layers) == 7
        (kept,) = report.kept_float
        assert kept.name == 'unused' and reason in kept.reason and 'not called' in kept.reason


class NoRows(nn.Module):
    """The second stage gets no rows at all, as a detector that finds nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.rows = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.rows(x[x.sum(-1) > 1e6])


def test_a_layer_without_any_row(seeded, make_spec, run_model):
    with pytest.raises(ValueError, match="'rows' saw no input position.*match='rows', skip=True"):
        calibrate(seeded(NoRows), [torch.rand(5, 3), torch.rand(4, 3)], make_spec(),
                  run=run_model)


def test_a_request_that_leaves_nothing_is_refused(residual_net, images, make_spec, run_model):
    with pytest.raises(ValueError, match='No layer is left to quantize: stem .*override'):
        calibrate(residual_net(), images(), make_spec(overrides=[dict(match='*', skip=True)]),
                  run=run_model)


@pytest.mark.parametrize('stage', ['float', 'layers'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_a_calibration_that_is_broken_off_leaves_the_model_as_it_was(
        stage, error, residual_net, images, make_spec, run_model, assert_same_state):
    def stop(step):
        if step.stage == stage and step.done == 2:
            raise error

    model, batches = residual_net().train(), images()
    modules, before = dict(model.named_modules()), outputs(residual_net(), batches)
    parameters = [id(value) for value in model.parameters()]
    with pytest.raises(error):
        calibrate(model, batches, make_spec(), run=run_model, progress=stop)
    assert model.training and dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks or 'forward' in vars(module)
                   for module in modules.values())
    assert [id(value) for value in model.parameters()] == parameters
    assert all(value.requires_grad for value in model.parameters())
    assert_same_state(model, residual_net())
    for ours, wanted in zip(outputs(model.eval(), batches), before, strict=True):
        assert torch.equal(ours, wanted)
    calibrate(model, batches, make_spec(), run=run_model)  # and can be calibrated now
    with pytest.raises(ValueError, match='quantized layer.* already'):
        calibrate(model, batches, make_spec(), run=run_model)
