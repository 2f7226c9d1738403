"""What forwards keep on modules is each forward's own, and gone after calibration."""

from collections import deque

import pytest
import torch
from calibration_nets import _images, _seeded, _spec, call
from pyramids import Pyramid
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.passes.module_state import ModuleState

AT_MODULE_LEVEL = {}


class Store:
    """An object that is no module, such as a cache of keys and values."""

    def __init__(self):
        self.by_name, self.count = {'deep': []}, 0


class Keeper(nn.Module):
    """Hands tensors from one layer to a later one through places of all kinds."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.d = nn.Conv2d(4, 2, 1)
        self.kept, self.attribute, self.store = {}, None, Store()
        self.stack, self.queue, self.steps = [], deque(), 0
        self.names = set()
        self.register_buffer('scratch', torch.zeros(2, 4, 16, 16))
        self.register_buffer('seen', torch.zeros((), dtype=torch.long))
        WAYS[way][2](self)

    def forward(self, x):
        keep, recall, _ = WAYS[self.way]
        first = torch.relu(self.a(x))
        keep(self, first)
        second = torch.relu(self.b(first))
        third = torch.relu(self.c(second))
        return self.d(third + recall(self, first))


def to_scratch(net, x):
    net.scratch[:len(x), :, :x.shape[2], :x.shape[3]] = x


def count(net, x):
    net.seen += 1
    net.steps += 1
    net.names.add(net.steps)


def counted(net, x):
    return x * (float(net.seen) + net.steps + len(net.names)) / 3


def with_hook(net):
    features = {}
    net.a.register_forward_hook(lambda module, args, output: features.update(a=output))
    net.recall = lambda: features['a'].relu()


def with_variable(net):
    kept = None

    def hook(module, args, output):
        nonlocal kept
        kept = output

    net.a.register_forward_hook(hook)
    net.recall = lambda: kept.relu()


def with_global(net):
    net.a.register_forward_hook(
        lambda module, args, output: AT_MODULE_LEVEL.update(a=output))


def own_generator(net):
    net.generator = torch.Generator().manual_seed(0)


def shuffled_back(net, x):
    """A step whose result does not depend on the draw, as long as both halves see the same."""
    return x[:, torch.randperm(4, generator=net.generator)].sum(1, keepdim=True).expand_as(x) \
        + torch.rand(1, generator=net.generator)


def nothing(*args):
    pass


# How a tensor is kept, how it is read later, and what must be set up.
WAYS = {
    'not at all': (nothing, lambda net, x: x, nothing),
    'an attribute': (lambda net, x: setattr(net, 'attribute', x),
                     lambda net, x: net.attribute, nothing),
    'a new attribute': (lambda net, x: setattr(net, 'new', x),
                        lambda net, x: net.__dict__.pop('new'), nothing),
    'of another module': (lambda net, x: setattr(net.b, 'kept', x),
                          lambda net, x: net.b.kept, nothing),
    'a dict': (lambda net, x: net.kept.update(x=x), lambda net, x: net.kept['x'], nothing),
    'a list': (lambda net, x: net.stack.append(x), lambda net, x: net.stack[-1], nothing),
    'a list that is emptied': (lambda net, x: net.stack.append(x),
                               lambda net, x: net.stack.pop(), nothing),
    'a queue': (lambda net, x: net.queue.append(x), lambda net, x: net.queue.popleft(), nothing),
    'an object': (lambda net, x: net.store.by_name['deep'].append(x),
                  lambda net, x: net.store.by_name['deep'][-1], nothing),
    'a buffer': (to_scratch, lambda net, x: net.scratch[:len(x), :, :x.shape[2], :x.shape[3]],
                 nothing),
    'counters': (count, counted, nothing),
    'a dict of a hook': (nothing, lambda net, x: net.recall(), with_hook),
    'a variable of a hook': (nothing, lambda net, x: net.recall(), with_variable),
    'a dict of the file': (nothing, lambda net, x: AT_MODULE_LEVEL['a'].relu(), with_global),
}


class Net(nn.Module):
    """The keeper alone, or as a head that all levels share."""

    def __init__(self, way, shared):
        super().__init__()
        self.neck, self.keeper, self.shared = Pyramid(), Keeper(way), shared

    def forward(self, x):
        levels = self.neck(x)
        return self.heads(levels if self.shared else levels[-1:])

    def heads(self, levels):
        return [self.keeper(level) for level in levels]


def visible(model):
    """Attributes, contents of containers and buffers, and which objects hold them."""
    return {name: (vars(module).keys(), repr({
        key: value for key, value in vars(module).items() if not key.startswith('_')
        and not isinstance(value, Store)}), id(vars(module).get('kept')), [
            value.tolist()
            for value in module.buffers(recurse=False)])
        for name, module in model.named_modules() if isinstance(module, (Net, Keeper))}


@pytest.fixture(scope='module', params=[False, True], ids=['one level', 'shared'])
def plain(request):
    """Whether the head is shared; the model that keeps nothing, calibrated; its errors."""
    model = _seeded(lambda: Net('not at all', request.param))
    _, report = calibrate(model, _images(4), _spec(), run=call)
    return request.param, model, {layer.name: layer.error for layer in report.layers}


@pytest.mark.parametrize('way', WAYS)
def test_what_is_kept_on_modules_belongs_to_one_forward(way, plain, seeded, images, make_spec,
                                                        run_model, assert_same_state):
    shared, expected, errors = plain
    if shared and way == 'counters':
        pytest.skip('a head that counts its levels is another function than one that does not')
    model = seeded(lambda: Net(way, shared))
    before, hooks = visible(model), dict(AT_MODULE_LEVEL)
    _, report = calibrate(model, images(4), make_spec(), run=run_model)
    assert_same_state(model, expected)
    assert {layer.name: layer.error for layer in report.layers} == errors
    assert visible(model) == before and hooks == AT_MODULE_LEVEL
    assert model.keeper.store.by_name == {'deep': []}


class CountsLevels(Net):
    """Each level is scaled by how many came before it, which a buffer and a number count."""

    def heads(self, levels):
        outputs = []
        for level in levels:
            self.keeper.seen += 1
            self.keeper.steps += 1
            outputs.append(self.keeper(level * (float(self.keeper.seen) + self.keeper.steps)))
        return outputs


class ScalesLevels(Net):
    def heads(self, levels):
        return [self.keeper(level * float(2 + 2 * index)) for index, level in enumerate(levels)]


def test_every_run_of_a_repeated_head_begins_with_what_the_first_found(
        seeded, images, make_spec, run_model, assert_same_state):
    models = [seeded(lambda kind=kind: kind('an attribute', True))
              for kind in (CountsLevels, ScalesLevels)]
    for model in models:
        calibrate(model, images(4), make_spec(), run=run_model)
    assert_same_state(*models)
    assert models[0].keeper.steps == 0 == int(models[0].keeper.seen)


class OwnCache(Net):
    """A cache that the forward itself makes, filled by a head that is repeated."""

    def forward(self, x):
        self.cache = {'levels': [], 'scratch': torch.zeros(1)}
        return super().forward(x)

    def heads(self, levels):
        outputs = []
        for level in levels:
            self.cache['levels'].append(level)
            self.cache['scratch'] += 1
            scale = len(self.cache['levels']) + float(self.cache['scratch'])
            outputs.append(self.keeper(level * scale))
        return outputs


def test_what_a_forward_has_made_itself_is_as_it_was_for_every_run(
        seeded, images, make_spec, run_model, assert_same_state):
    models = [seeded(lambda kind=kind: kind('an attribute', True))
              for kind in (OwnCache, ScalesLevels)]
    for model in models:
        calibrate(model, images(4), make_spec(), run=run_model)
    assert_same_state(*models)
    assert not hasattr(models[0], 'cache')


def test_what_hooks_write_down_is_left_to_them(seeded, images, make_spec, run_model):
    calls, outputs, counts = [], [], {'b': 0}
    model = seeded(lambda: Net('an attribute', False))

    def hook(module, args, output):
        calls.append('neck')
        outputs.extend(output)
        counts['b'] += 1

    model.neck.register_forward_hook(hook)
    model.shapes = []
    model.register_forward_pre_hook(lambda module, args: model.shapes.append(args[0].shape))
    calibrate(model, images(4), make_spec(), run=run_model)
    assert len(calls) == counts['b'] == len(model.shapes) == 12 and len(outputs) == 36


@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
def test_after_an_error_containers_are_as_before(error, seeded, images, make_spec):
    model, runs = seeded(lambda: Net('a dict', True)), []
    model.keeper.kept['mine'] = 3

    def run(model, batch):
        model(batch)
        runs.append(1)
        if len(runs) == 7:  # some batches still sleep
            raise error

    with pytest.raises(error):
        calibrate(model, images(4), make_spec(), run=run)
    assert model.keeper.kept == {'mine': 3}


def test_nothing_is_noted_of_a_model_that_keeps_nothing(residual_net, images):
    model = residual_net()
    state = ModuleState(model)
    model(images(1)[0])
    state.end()
    assert not state.changing
