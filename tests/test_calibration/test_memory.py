"""What calibration will hold: estimated near what it holds, and refused when it is too much."""

import gc
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from mmbitsplit.calibration import calibrate, memory
from mmbitsplit.calibration.layer_solver import LayerSolver
from mmbitsplit.calibration.memory import (
    MemoryEstimate,
    check_memory,
    estimate_memory,
    tuning_bytes,
    with_gradients,
    with_units,
)
from mmbitsplit.models import QuantizedLayer, prepare, watch
from mmbitsplit.passes import free_memory
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.float_pass import float_pass
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.planning import make_plan
from mmbitsplit.solving.tuning import TunedModel
from mmbitsplit.structures import CalibrationSpec, Unit

GB = 10 ** 9
EIGHT = MemoryEstimate(suspended=5 * GB, running=GB // 2, targets=2 * GB, solving=GB // 4,
                       weights=GB // 4)


class PyramidNet(nn.Module):
    """Three levels, and a head that all of them share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))
        self.head = PyramidHead()

    def forward(self, x):
        levels = [torch.relu(self.stem(x))]
        for conv in self.down:
            levels.append(torch.relu(conv(levels[-1])))
        return self.head(levels)


class PyramidHead(nn.Module):

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(*(layer for _ in range(4) for layer in (
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())))
        self.classify = nn.Conv2d(8, 5, 1)

    def forward(self, levels):
        return [self.classify(self.tower(level)) for level in levels]


@pytest.fixture(params=['residual', 'pyramid'])
def make_net(request, residual_net, seeded):
    return {'residual': residual_net, 'pyramid': lambda: seeded(PyramidNet)}[request.param]


@pytest.fixture
def look(make_spec):
    """Watches and prepares a model; returns a function that estimates for batches like one."""
    def make(model, batch):
        flow = watch(model, lambda: model(batch))
        prepared = prepare(model, flow, make_plan(model, flow, make_spec()))
        owners = find_owners(flow, set(prepared.layers))
        geometries = {name: layer.geometry for name, layer in prepared.layers.items()}

        def estimate(sizes=1, rows=256, num_batches=None) -> MemoryEstimate:
            sizes = [1.0] * sizes if isinstance(sizes, int) else sizes
            return estimate_memory(flow, geometries, owners, dict(enumerate(sizes)), rows,
                                   num_batches or len(sizes))
        return prepared, flow, estimate
    return make


def test_more_images_hold_more(make_net, look, images):
    _, _, estimate = look(make_net(), images(1)[0])
    few, many = estimate(4), estimate(12)
    later = ('refining', 'units', 'learning', 'gradients', 'tuning', 'no_tuning')
    parts = {name: size for name, size in vars(few).items() if name not in later}
    assert min(parts.values()) > 0 and few.total == sum(parts.values())
    assert few.refining == few.units == few.gradients == 0
    assert many.suspended == 3 * few.suspended
    assert many.total > few.total


def test_units_hold_forwards_twice_and_what_they_are_given(make_net, look, images):
    _, flow, estimate = look(make_net(), images(1)[0])
    one, first = estimate(4), flow.order[0]
    units = (Unit(first, (first,), (first,)),)
    added = with_units(one, flow, units, 4.0, 10 * GB)
    assert added.suspended == 2 * one.suspended
    assert added.units == 4 * 4 * 3 * sum(flow.output_sizes[first])
    assert added.total == one.total + one.suspended + added.units
    assert with_units(one, flow, units, 4.0, 1000).units == 1000
    learned = with_units(one, flow, units, 4.0, 10 * GB, learning=one.solving + 7)
    assert learned.total == added.total + 7  # after the layers, not at the same time


def test_steps_that_do_not_fit_are_refused_with_what_makes_them_smaller():
    with pytest.raises(ValueError, match='4.0 GB for a step .*method.batch_size or granularity'):
        check_memory(replace(EIGHT, learning=4 * GB), 5 * GB, 10)


def test_gradients_are_held_before_anything_is_asleep(make_net, look, images):
    """One batch's graph, the largest's; of this net, no more than is estimated."""
    model, batch = make_net(), images(1)[0]
    _, flow, estimate = look(model, batch)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(batch.clone().requires_grad_())
    held = sum(size for place, size in saved.items() if place not in parameters)
    one = estimate(4)
    estimated = with_gradients(one, flow, {0: 1.0}, 0).gradients
    assert held <= estimated <= 8 * held and outputs is not None
    assert with_gradients(one, flow, {0: 0.5, 1: 2.0, 2: 1.0}, 5) == replace(
        one, gradients=2 * estimated, targets=one.targets + 40)
    rest = one.total - one.weights
    assert replace(one, gradients=rest).total == one.total
    assert replace(one, gradients=rest + 7).total == one.total + 7
    budget = one.total + rest
    with pytest.raises(ValueError, match='for gradients before.*not one image would fit'):
        check_memory(replace(one, gradients=2 * budget), budget, 4)


def test_tuning_holds_one_graph_when_all_else_is_gone(make_net, images, make_spec, run_model,
                                                       monkeypatch):
    """What autograd saves of a batch is less than is estimated, and not far less."""
    most, told, args = [0], [], []
    loss = TunedModel._loss

    def watched(self, batch, learned=None):
        saved = {}

        def keep(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = loss(self, batch, learned)
        most[0] = max(most[0], sum(saved.values()))
        return found

    def estimated(*given):
        args.append(given)
        told.append(tuning_bytes(*given))
        return told[-1]

    monkeypatch.setattr(TunedModel, '_loss', watched)
    monkeypatch.setattr(sys.modules['mmbitsplit.calibration.memory_check'], 'tuning_bytes',
                        estimated)
    calibrate(make_net(), images(4), make_spec(tuning=dict(type='OutputTuning', steps=2)),
              run=run_model)
    assert most[0] <= told[0] <= 6 * most[0]
    calibrate(make_net(), images(4), make_spec(tuning=dict(
        type='NormReestimation', target='float')), run=run_model)
    assert told[0] != told[1] > tuning_bytes(*args[1][:4], 0)  # all batches asleep instead
    least = replace(EIGHT, suspended=0).total
    assert replace(EIGHT, tuning=least).total == EIGHT.total
    with pytest.raises(ValueError, match='9.0 GB to tune.*batch of quantization.tuning does not '
                                         'fit.*batch_size lower'):
        check_memory(replace(EIGHT, tuning=9 * GB), 8 * GB, 10)


def test_batches_count_by_their_size(make_net, look, images):
    _, _, estimate = look(make_net(), images(1)[0])
    one = estimate(1).suspended
    assert estimate([2.0, 0.5]).suspended == 2.5 * one
    # With all positions taken, targets grow with the pixels too.
    assert estimate([2.0], 10 ** 6).targets == 2 * estimate([1.0], 10 ** 6).targets


def test_one_batch_runs_at_a_time(make_net, look, images):
    _, flow, estimate = look(make_net(), images(1)[0])
    one = estimate(1).running
    assert one == flow.peak_bytes >= max(map(sum, flow.live_blocks.values()))
    assert estimate(12).running == one and estimate([2.0, 0.5]).running == 2 * one


@pytest.mark.parametrize(('blocks', 'most'), [
    ([[40, 60], [300, 10]], 400), ([[300, 10], [40, 60]], 310), ([[40, 60], [90]], 100),
    ([[300], [200, 200]], 400)])
def test_small_blocks_stay_when_they_are_freed(blocks, most, residual_net, look, images,
                                               monkeypatch):
    """They are of no use to what is allocated in large ones later."""
    monkeypatch.setattr(memory, 'KEPT_BLOCK', 100)
    _, flow, estimate = look(residual_net(), images(1)[0])
    flow.live_blocks = {**dict.fromkeys(flow.order, []), **dict(zip(flow.order, blocks))}
    assert estimate(1).suspended == most
    assert estimate(3).suspended == 3 * most


def test_more_rows_hold_more_until_all_positions_are_taken(make_net, look, images):
    _, _, estimate = look(make_net(), images(1)[0])
    several = [estimate(4, rows) for rows in (64, 128, 256, 10 ** 6, 10 ** 7)]
    for name in ('targets', 'solving', 'total'):
        values = [getattr(one, name) for one in several]
        assert values == sorted(values)
        assert values[0] < values[1] < values[3] == values[4]
    assert len({one.suspended for one in several}) == 1


def test_images_of_other_processes_are_not_held_here(make_net, look, images):
    _, _, estimate = look(make_net(), images(1)[0])
    alone, shared = estimate(4, 256), estimate(4, 256, num_batches=8)
    assert shared.suspended == alone.suspended
    assert shared.targets < alone.targets
    assert shared.targets >= alone.targets / 2


@pytest.mark.parametrize('rows', [64, 250, 10 ** 6])
def test_targets_are_those_that_the_float_pass_keeps(make_net, look, images, run_model, rows):
    model, batches = make_net(), dict(enumerate(images(3)))
    prepared, flow, estimate = look(model, batches[0])
    sampler = Sampler(CalibrationSpec(rows_per_layer=rows), len(batches), flow.calls)
    record = float_pass(prepared, Forwards.of(model, list(batches.values()), run_model, seed=0),
                        sampler, (), lambda *steps: None)
    kept = sum(4 * target.numel() for calls in record.targets.values() for target in calls)
    assert estimate(3, rows).targets == kept


def storages() -> dict[int, int]:
    """Bytes of everything that a tensor known to Python's collector holds, by address."""
    found = {}
    for thing in gc.get_objects():
        # What tracing left behind in torch has a shape and no bytes.
        if issubclass(type(thing), Tensor) and not issubclass(type(thing), FakeTensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.fixture
def new_bytes():
    """Counts what tensors hold that did not exist before the test."""
    gc.collect()
    before = set(storages())
    gc.freeze()  # what is there already need not be looked at again
    yield lambda: sum(size for place, size in storages().items() if place not in before)
    gc.unfreeze()


def test_estimate_is_near_what_is_held(make_net, images, make_spec, run_model, monkeypatch,
                                       new_bytes):
    """All tensors alive when a layer is about to be solved, less the model's own."""
    model, batches = make_net(), images(4, size=48)
    held, estimates = [], []
    own, check, solve = new_bytes(), check_memory, LayerSolver.__call__

    def counting(self, name, offers):
        held.append(new_bytes() - own)
        solve(self, name, offers)

    monkeypatch.setattr(LayerSolver, '__call__', counting)
    monkeypatch.setattr(sys.modules['mmbitsplit.calibration.memory_check'], 'check_memory',
                        lambda *args: estimates.append(args[0]) or check(*args))
    prepared, report = calibrate(model, batches, make_spec(), run=run_model)
    estimate, most = estimates[0], max(held)
    assert estimate.weights == sum(layer.codes.nbytes + 2 * layer.product_weight.nbytes
                                   for layer in prepared.layers.values())
    assert report.estimated_bytes == estimate.total
    assert 0.5 * most < estimate.suspended + estimate.targets < 2 * most
    assert most < 1.2 * estimate.total


@pytest.mark.parametrize('spare', [0, 1, 10 ** 6])
def test_what_fits_passes(spare):
    check_memory(EIGHT, EIGHT.total + spare, 10)


@pytest.mark.parametrize(('budget', 'fit'), [(7.9, 9), (5.5, 5), (3.5, 1), (7.9999, 9)])
def test_what_does_not_fit_is_refused_with_the_number_that_would(budget, fit):
    """Half a GB an image, three of them whatever the number of images."""
    with pytest.raises(ValueError, match='10 images would hold about 8.0 GB') as refusal:
        check_memory(EIGHT, budget * GB, 10)
    message = str(refusal.value)
    assert f'about {fit} images would fit: set quantization.calibration.num_images={fit},' \
        in message
    for part in ('5.0 GB of suspended', '0.5 GB of the running', '2.0 GB of float',
                 '0.2 GB to solve', '0.2 GB of weights',
                 f'budget is {budget:.1f} GB', 'quantization.calibration.memory_budget'):
        assert part in message


@pytest.mark.parametrize('budget', [3.4, 3.0, 1.0, 0])
def test_not_one_image_fits(budget):
    with pytest.raises(ValueError, match='not one image would fit: set .*rows_per_layer lower'):
        check_memory(EIGHT, budget * GB, 10)


@pytest.mark.parametrize('part', [0.3, 0.5, 0.8, 0.99])
def test_the_number_that_is_named_passes(make_net, look, images, part):
    _, _, estimate = look(make_net(), images(1, size=32)[0])
    wanted = estimate(32)
    budget = wanted.total - (1 - part) * wanted.suspended
    with pytest.raises(ValueError) as refusal:
        check_memory(wanted, budget, 32)
    fit = int(re.search('num_images=([0-9]+)', str(refusal.value)).group(1))
    assert fit == int(32 * part)
    check_memory(estimate(fit), budget, fit)
    with pytest.raises(ValueError):
        check_memory(estimate(fit + 2), budget, fit + 2)


@pytest.mark.parametrize('budget', [1e-9, 1e-4])
def test_calibrate_refuses_before_the_float_pass(make_net, images, make_spec, budget):
    runs, steps = [], []

    def run(model, batch):
        runs.append(batch)
        return model(batch)

    with pytest.raises(ValueError, match=r'on 8 images.*memory_budget \(GB\)'):
        calibrate(make_net(), images(8), make_spec(calibration=dict(memory_budget=budget)),
                  run=run, progress=steps.append)
    assert len(runs) == 2  # one to find what multiplies, and the one that was watched
    assert not steps


def test_a_request_that_is_refused_leaves_the_model_as_it_was(residual_net, images, make_spec,
                                                              run_model):
    """So that the same model can be tried again on fewer images."""
    model = residual_net()
    with pytest.raises(ValueError, match='memory_budget'):
        calibrate(model, images(), make_spec(calibration=dict(memory_budget=1e-9)), run=run_model)
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())
    _, report = calibrate(model, images(), make_spec(), run=run_model)
    assert len(report.layers) == 7


def test_a_budget_that_suffices_changes_nothing(residual_net, images, make_spec, run_model,
                                                assert_same_state):
    models = [residual_net(), residual_net()]
    for model, budget in zip(models, (None, 0.5)):
        calibrate(model, images(), make_spec(calibration=dict(memory_budget=budget)),
                  run=run_model)
    assert_same_state(*models)


def test_without_a_budget_the_available_memory_counts(residual_net, images, make_spec, run_model,
                                                      monkeypatch):
    asked = []
    monkeypatch.setattr(free_memory, 'available_bytes',
                        lambda device: asked.append(device) or 1000)
    with pytest.raises(ValueError, match=r'budget is 0.0 GB'):
        calibrate(residual_net(), images(), make_spec(), run=run_model)
    assert asked == [torch.device('cpu')]
