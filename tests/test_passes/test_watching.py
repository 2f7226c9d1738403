"""What the first batch does not show: other calls, other readers, other looks at layers."""

import copy

import pytest
import torch
from own_classes import OwnClasses
from torch import nn

from mmbitsplit.calibration import ReplayPoint, calibrate
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.watching import batches_to_compare


def call(model, batch):
    return model(*batch) if isinstance(batch, tuple) else model(batch)


class Net(nn.Module):
    """Runs a function of (net, inputs); modules by name, all of four channels."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.end = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args):
        return self.run(self, *args)


@pytest.fixture
def net(seeded):
    return lambda run, **modules: seeded(lambda: Net(run, **modules))


def by_flag(net, x, also):
    y = net.stem(x)
    z = net.norm(y)
    return net.end(net.inner(z + y if also else z).relu())


def by_size(net, x):
    y = net.stem(x)
    z = net.norm(y)
    return net.end(net.inner(z + y if x.shape[-1] > 8 else z).relu())


def by_brightness(net, x):
    y = net.stem(x)
    z = net.norm(y)
    return net.end(net.inner(z + y if x.mean() > 0 else z).relu())


@pytest.mark.parametrize('which', ['flag', 'size', 'brightness'])
def test_a_norm_whose_input_is_read_on_other_batches_is_not_folded(which, net, images, make_spec):
    model, plain = net({'flag': by_flag, 'size': by_size,
                        'brightness': by_brightness}[which]), images(5)
    batches = {'flag': [(x, number == 3) for number, x in enumerate(plain)],
               'size': [*plain, *images(1, size=12)],
               'brightness': [-plain[0].abs(), *(x.abs() for x in plain[1:])]}[which]
    float_model = copy.deepcopy(model)
    _, report = calibrate(model, batches, make_spec(
        weight=dict(num_bits=8), calibration=dict(rows_per_layer=2048)), run=call)
    assert report.folded_batch_norms == []
    with torch.no_grad():
        for batch in batches:
            wanted = call(float_model, batch)
            assert (call(model, batch) - wanted).norm() < 0.03 * wanted.norm()


def looks_at_class(net, x):
    for layer in (net.stem, net.norm, net.inner):
        x = layer(x) * 2 if isinstance(layer, nn.Conv2d) else layer(x)
    return net.end(x)


def looks_at_method(net, x):
    return net.end(net.inner(net.norm(net.stem(x))) * net.inner.gain())


def python_list(net, x):
    for layer in net.listed[0]:
        x = layer(x)
    return net.end(x)


def forward_of_it(net, x):
    return net.end(net.inner.forward(net.norm(net.stem(x))))


class WithGain(nn.Conv2d):
    def gain(self):
        return self.factor


def looked_at(net, run):
    model = net(run, inner=WithGain(4, 4, 3, padding=1))
    model.inner.factor = 2.0
    model.listed = ([model.stem, model.norm, model.inner],)
    return model


@pytest.mark.parametrize('run', [looks_at_class, looks_at_method, python_list, forward_of_it])
def test_models_that_look_at_their_layers_find_them(run, net, images, make_spec):
    model, batches = looked_at(net, run), images()
    float_model, modules = copy.deepcopy(model), dict(model.named_modules())
    _, report = calibrate(model, batches, make_spec(
        weight=dict(num_bits=8), activation=dict(num_bits=8)), run=call)
    called = {'stem', 'end'} if run is forward_of_it else {'stem', 'inner', 'end'}
    assert {layer.name for layer in report.layers} == called
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())
    with torch.no_grad():
        for batch in batches:
            wanted = call(float_model, batch)
            assert 0 < (call(model, batch) - wanted).norm() < 0.03 * wanted.norm()


def keeps_a_feature(net, x):
    y = net.inner(net.norm(net.stem(x)).relu())
    return net.end(y + net.kept['norm'])


@pytest.mark.parametrize('on', ['stem', 'norm', 'inner'])
def test_hooks_of_the_user_stay_and_do_what_they_did(on, net, images, make_spec):
    """One keeps a feature for a skip, one changes what a layer gets."""
    model, batches = looked_at(net, keeps_a_feature), images()
    model.kept = {}
    getattr(model, on).register_forward_hook(
        lambda module, args, out: model.kept.update(norm=out))
    change = model.inner.register_forward_pre_hook(lambda module, args: (args[0] * 0.1 + 3,))
    with torch.no_grad():
        wanted = [call(model, batch) for batch in batches]
        _, report = calibrate(model, batches, make_spec(
            weight=dict(num_bits=8), activation=dict(num_bits=8)), run=call)
        found = [call(model, batch) for batch in batches]
        assert {layer.name for layer in report.layers} == {'stem', 'inner', 'end'}
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() < 0.03 * other.norm()
        change.remove()
        assert not torch.allclose(call(model, batches[0]), found[0], rtol=0.1)


def looks_at_exact_class(net, x):
    for layer in (net.stem, net.norm, net.inner):
        x = layer(x) * 2 if type(layer) in (nn.Conv2d, WithGain) else layer(x)
    return net.end(x)


def looks_at_state(net, x):
    return net.end(net.inner(net.norm(net.stem(x)))) * len(list(net.inner.parameters()))


@pytest.mark.parametrize('run, named, shows', [
    (looks_at_exact_class, ['stem', 'inner'], "the output of 'norm' differs by"),
    (looks_at_state, ['inner'], 'what the run returns differs by')])
def test_layers_that_the_model_looks_at_in_other_ways_are_named_and_it_stays_as_it_was(
        run, named, shows, net, images, make_spec):
    model = looked_at(net, run)
    model.inner.register_parameter('spare', nn.Parameter(torch.zeros(1)))
    modules, batches = dict(model.named_modules()), images()
    with pytest.raises(ValueError) as error:
        calibrate(model, batches, make_spec(), run=call)
    message = str(error.value)
    assert shows in message and 'batch 1' in message
    rows = ', '.join(f"dict(match='{name}', skip=True)" for name in named)
    assert f'overrides=[{rows}]' in message
    assert dict(model.named_modules()) == modules and type(model.stem) is nn.Conv2d
    assert type(model.inner) is WithGain and type(model.norm) is nn.BatchNorm2d
    skip = [dict(match=name, skip=True) for name in named]
    _, report = calibrate(model, batches, make_spec(overrides=skip), run=call)
    assert {layer.name for layer in report.layers} == {'stem', 'inner', 'end'} - {*named}


def test_round_off_of_folding_is_no_difference(seeded, images, make_spec):
    """Means far from zero: what is folded is small beside what cancels."""
    def make():
        layers = []
        for _ in range(24):
            layers += [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
        return nn.Sequential(nn.Conv2d(3, 4, 1), *layers)

    model = seeded(make)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.mul_(1e5)
            module.bias.data.copy_(module.running_mean * module.weight / (
                module.running_var + module.eps).sqrt())
    _, report = calibrate(model, images(), make_spec(), run=call)
    assert len(report.folded_batch_norms) == 24


def test_choices_that_round_off_turns_are_no_difference(net, images, make_spec):
    """Rows in the order of scores that are equal but for round-off."""
    def run(net, x):
        y = net.norm(net.stem(x))
        order = (y - y.double().float() + 1e-7 * net.inner(y)).flatten(1)[:, :64].sort(1).indices
        return net.end(y.flatten(2)[..., :64].gather(2, order.unsqueeze(1).expand(-1, 4, -1))
                       .unflatten(2, (8, 8)))

    model = net(run)
    calibrate(model, [x + 100 * torch.ones_like(x) for x in images()], make_spec(), run=call)
    assert isinstance(model.end, QuantizedLayer)


def test_recorded_decisions_are_taken_over_when_comparing(net, images, make_spec):
    seen = []

    class Chooser(nn.Module):
        def forward(self, x):
            return self.choose(x)

        def choose(self, x):
            seen.append(len(seen))
            return torch.roll(x, len(seen), -1)  # other rows at every call

    model = net(lambda net, x: net.end(net.chooser(net.inner(net.norm(net.stem(x))))),
                chooser=Chooser())
    calibrate(model, images(), make_spec(), run=call,
              replay_points=[ReplayPoint(model.chooser, 'choose')])
    assert isinstance(model.end, QuantizedLayer)


@pytest.mark.parametrize('count', [1, 3])
def test_classes_of_their_own_are_compared_where_their_steps_are(count, seeded, images, make_spec):
    _, report = calibrate(seeded(OwnClasses), images(count), make_spec(), run=call)
    assert report.folded_batch_norms == ['norm']


FLAGS = {number: ((number % 4,), (number // 2,)) for number in range(8)}


@pytest.mark.parametrize('signatures, chosen', [
    ({0: ((), (1,))}, [0]),
    ({0: ((), (1,)), 1: ((), (1,)), 2: ((), (1,))}, [1]),
    ({0: ((), (1,)), 1: ((), (1,)), 2: ((), (2,))}, [2]),
    (FLAGS, [1, 2, 3])])
def test_batches_unlike_the_first_are_compared(signatures, chosen):
    assert batches_to_compare(signatures) == chosen


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, times):
        x = self.enter(x).relu()
        for _ in range(times):
            x = x + self.inner(x).relu()
        return self.leave(x)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.leave = nn.Linear(8, 3)

    def forward(self, x, expert):
        return self.leave(self.experts[expert](self.enter(x).relu()).relu())


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(64, 6, generator=generator) for _ in range(8)]


@pytest.mark.parametrize('order', [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3), (1, 1, 4, 1)])
def test_a_layer_may_be_called_more_often_on_other_batches(order, rows, seeded, make_spec,
                                                           assert_like_naive):
    batches = [(x, times) for x, times in zip(rows, order)]
    _, report = assert_like_naive(lambda: seeded(Loop), batches, make_spec(), run=call)
    calls = {layer.name: layer.calls for layer in report.layers}
    assert calls == dict(enter=4, inner=sum(order), leave=4)


@pytest.mark.parametrize('order', [(0, 1, 2, 0, 1, 2), (2, 2, 2, 2, 0, 1), (1, 0, 0, 2, 0, 0)])
def test_each_expert_is_calibrated_on_the_batches_that_reach_it(order, rows, seeded, make_spec,
                                                                assert_like_naive):
    batches = [(x, expert) for x, expert in zip(rows, order)]
    spec = make_spec(calibration=dict(rows_per_layer=96))
    _, report = assert_like_naive(lambda: seeded(Experts), batches, spec, run=call)
    reported = {layer.name: layer for layer in report.layers}
    for expert in range(3):
        layer, batches = reported[f'experts.{expert}'], order.count(expert)
        assert layer.calls == batches and layer.rows == min(64, -(-96 // batches)) * batches


class Counted(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.body, self.runs, self.unused = nn.Linear(6, 8), [], unused
        self.end = nn.Linear(8, 3)

    def forward(self, x):
        self.runs.append(torch.utils._python_dispatch._get_current_dispatch_mode() is not None)
        return self.end(self.body(x).relu())


def test_a_layer_that_is_never_called_costs_no_watching(rows, seeded, make_spec):
    found = []
    for unused, overrides in ((nn.Identity(), []),
                              (nn.Linear(2, 2), [dict(match='unused', skip=True)])):
        model = seeded(lambda unused=unused: Counted(unused))
        calibrate(model, rows, make_spec(overrides=overrides), run=call)
        found.append((len(model.runs), sum(model.runs)))
    assert found == [(2 * len(rows) + 4, 2)] * 2  # what multiplies, and how values flow
    model = seeded(lambda: Counted(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='never reached'):
        calibrate(model, rows, make_spec(), run=call)
