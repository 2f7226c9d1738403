"""What a forward sets for its thread reaches neither other forwards, nor the solver or caller."""

import contextvars
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from pyramids import Detector, LevelHead
from thread_nets import CONTEXTS, Inside, found
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.thread_state import drawn_from, random_state


@pytest.mark.parametrize('context', CONTEXTS)
def test_a_context_inside_a_forward_changes_no_code(context, seeded, images, make_spec, run_model,
                                                    assert_same_state):
    before = found()
    models = [seeded(partial(Inside, each)) for each in (CONTEXTS[context], nullcontext)]
    for model in models:
        calibrate(model, images(), make_spec(), run=run_model)
        assert found() == before
    assert_same_state(*models)
    for value in models[0].state_dict().values():
        assert not value.is_inference()
    (nn.Linear(3, 1)(torch.randn(2, 3)).sum()).backward()  # training goes on


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('context', ['enable_grad', 'inference_mode', 'default dtype'])
def test_a_context_in_and_around_a_shared_head(context, whole, seeded, images, make_spec,
                                               run_model, assert_same_state):
    class Head(LevelHead):
        def single(self, x):
            with self.context():
                x = self.towers[0](x)
            return self.classify(x), self.regress(self.towers[1](x.clone()))

    class Whole(Detector):
        def forward(self, x):
            levels = self.neck(x)
            with self.heads[0].context():
                outputs = [head(list(levels)) for head in self.heads]
            return outputs, self.end(levels[-1])

    models = []
    for chosen in (CONTEXTS[context], nullcontext):
        models.append(seeded(lambda: (Whole if whole else Detector)(
            LevelHead() if whole else Head())))
        models[-1].heads[0].context = chosen
        calibrate(models[-1], images(), make_spec(), run=run_model)
    assert_same_state(*models)
    assert not torch.is_inference_mode_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize('around', [False, True])
def test_layers_under_autocast_are_quantized_in_float32(around, seeded, images, make_spec,
                                                        run_model):
    def lower():
        return torch.autocast('cpu', dtype=torch.bfloat16)

    def run(model, batch):
        with lower() if around else nullcontext():
            return model(batch)

    model, plain = (seeded(partial(Inside, each)) for each in (
        nullcontext if around else lower, nullcontext))
    with torch.no_grad():
        wanted = [run(model, batch) for batch in images()]
    before = found()
    prepared, report = calibrate(model, images(), make_spec(weight=dict(num_bits=8)), run=run)
    assert found() == before and len(report.layers) == 4
    _, of_plain = calibrate(plain, images(), make_spec(weight=dict(num_bits=8)), run=run_model)
    for layer, other in zip(report.layers, of_plain.layers, strict=True):
        assert layer.error < other.error + 0.05, layer.name  # bfloat16 keeps 8 bits
    seen = []
    model.b.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.no_grad():
        for batch, expected in zip(images(), wanted):
            assert (run(model, batch) - expected).norm() < 0.02 * expected.norm()
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize('context', [lambda: torch.autocast('cpu', dtype=torch.bfloat16),
                                     torch.inference_mode, lambda: torch.device('cpu')])
def test_contexts_of_the_caller_hold_for_its_model_alone(context, seeded, images, make_spec):
    inside, seen = [], []

    def run(model, batch):
        inside.append(found())
        return model(batch)

    def step(progress):
        seen.append((torch.is_autocast_enabled('cpu'), torch.is_inference_mode_enabled(),
                     torch.overrides._get_current_function_mode_stack()))

    model = seeded(Inside)
    with context():
        before = found()
        calibrate(model, images(), make_spec(), run=run, progress=step)
        assert found() == before
    opened, *inside = inside  # the first under a mode of ours
    assert opened.function_modes[:-1] == before.function_modes
    assert all(state.function_modes == before.function_modes for state in inside)
    assert all(state.inference == before.inference for state in inside)
    assert all(state.settings['autocast_cpu'] == before.settings['autocast_cpu']
               for state in inside)
    assert all(state == (False, False, []) for state in seen)
    for value in model.state_dict().values():
        assert not value.is_inference()


@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize('at', [0, 2, 6])  # while watching, in the float and quantized pass
@pytest.mark.parametrize('context', ['inference_mode', 'default dtype', 'two at once'])
def test_after_an_error_everything_is_as_before(context, at, error, seeded, images, make_spec,
                                                run_model):
    times = []

    def stumble():
        times.append(1)
        if len(times) > at:
            random.random(), np.random.rand(), torch.rand(1)
            raise error('in the middle')

    before, generators = found(), random_state()
    with pytest.raises(error, match='in the middle'):
        calibrate(seeded(lambda: Inside(CONTEXTS[context], stumble)), images(), make_spec(),
                  run=run_model)
    assert found() == before
    assert not drawn_from(generators) & {'random', 'numpy'}


@pytest.mark.parametrize('outside', [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('error', [None, KeyError])
def test_a_watched_forward_leaves_its_caller_as_it_was(outside, error, seeded, images, run_model):
    forwards = Forwards.of(seeded(Inside), images(), run_model, seed=0)
    with outside():
        before = found()
        with pytest.raises(error) if error else nullcontext(), forwards.state.watched(0):
            assert found() == forwards.state.ours
            torch.set_grad_enabled(not torch.is_grad_enabled())
            if error:
                raise error('in the middle')
        assert found() == before


class Drawing(nn.Module):
    """Shuffles its channels before and after a layer, by the generator it is given."""

    def __init__(self, draw, repeats: int = 1):
        super().__init__()
        self.draw, self.repeats = draw, repeats
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        for _ in range(self.repeats):
            x = torch.relu(self.b(x[..., self.draw()]))[..., self.draw()]
        return self.c(x)


def seeded_draw():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torch.randperm(32)


DRAWS = {
    'torch': lambda: torch.randperm(32),
    'random': lambda: random.sample(range(32), 32),
    'numpy': lambda: torch.from_numpy(np.random.permutation(32)),
    'seeded': seeded_draw,
}


@pytest.mark.parametrize('repeats', [1, 2])
@pytest.mark.parametrize('draw', DRAWS)
def test_both_passes_draw_the_same_numbers(draw, repeats, seeded, make_spec, run_model,
                                           assert_same_state):
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(64, 8, generator=generator) for _ in range(4)]
    models = []
    for seed in (1, 2):  # the caller's generators play no part
        models.append(seeded(lambda: Drawing(DRAWS[draw], repeats)))
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = random_state()
        _, report = calibrate(models[-1], batches, make_spec(weight=dict(num_bits=8)),
                              run=run_model)
        assert not drawn_from(before)
        assert all(layer.error < 1e-3 for layer in report.layers), report.layers
    assert_same_state(*models)


def test_batches_draw_different_numbers(seeded, images, make_spec, run_model):
    drawn = []

    def draw():
        drawn.append(torch.randperm(32))
        return drawn[-1]

    batches = [torch.randn(16, 8) for _ in range(4)]
    calibrate(seeded(lambda: Drawing(draw)), batches, make_spec(), run=run_model)
    assert len({tuple(each.tolist()) for each in drawn[-8:]}) == 8  # the quantized pass


def test_a_forward_finds_what_context_variables_say(residual_net, images, make_spec):
    variable = contextvars.ContextVar('variable', default=None)
    seen = []

    def run(model, batch):
        seen.append(variable.get())
        return model(batch)

    def calibrated():
        variable.set('set by the caller')
        calibrate(residual_net(), images(), make_spec(), run=run)

    contextvars.copy_context().run(calibrated)
    assert set(seen) == {'set by the caller'}
