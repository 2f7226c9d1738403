"""What a step of learning is estimated to take is near what its backward pass keeps."""

import pytest
import torch
from torch import nn
from unit_methods import WATCHER, known  # noqa: F401

from mmbitsplit.calibration import calibrate, unit_solver
from mmbitsplit.calibration.unit_memory import learning_bytes
from mmbitsplit.methods.unit_learning_state import harden, soften
from mmbitsplit.models import watch
from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.structures import Unit

GB = 10 ** 9


class Blocks(nn.Module):
    """A stem, and a block with a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1, groups=32), nn.SiLU(),
            nn.Conv2d(32, 16, 1))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.block(torch.relu(self.stem(x)))))


def kept_in_a_step(problem, batch_size):
    """Bytes that autograd keeps of one step, weights and their optimizer left out."""
    soften(problem)
    for layer in problem.layers.values():
        if layer.input_quantizer is not None:
            layer.input_quantizer.learn(scale='raw', carrier=layer.weight_quantizer)
    x = torch.cat([call.quantized_input for call in problem.fit])[:batch_size]
    alive = []  # so that no memory is used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda value: alive.append(value) or value,
                                                  lambda value: value):
        problem.forward(x)
    harden(problem)
    return sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
                for value in alive}.values())


def estimated(model, image, *units, **options):
    flow = watch(model, lambda: model(image), inputs=image)
    geometries = {name: layer_geometry(model.get_submodule(name)) for name in flow.order}
    options = {'batch_size': 4, 'total': 4.0, 'budget': GB, **options}
    return learning_bytes(flow, [Unit(name, (name,), tuple(
        layer for layer in flow.order if layer.startswith(name))) for name in units],
        geometries, **options)


@pytest.mark.parametrize('size', [24, 64])
def test_a_step_keeps_no_more_and_not_much_less(size, seeded, images, make_spec, run_model,
                                                monkeypatch):
    """Whole maps, or crops where these do not fit."""
    budget, kept = 2_500_000, {}

    def solve(problem):
        kept[problem.unit.name] = kept_in_a_step(problem, 4), problem.fit[0].float_input.shape[-1]
        return ()

    monkeypatch.setitem(WATCHER, 'solve', solve)
    monkeypatch.setattr(unit_solver, 'UNIT_BYTES', budget)
    batches = images(4, size=size)
    calibrate(seeded(Blocks), batches, make_spec(method=dict(type='Watched')), run=run_model)
    found, width = kept['block']
    assert (width < size) == (size == 64)
    expected = estimated(seeded(Blocks).eval(), batches[0], 'block', budget=budget)
    assert found <= expected <= 4 * found


def test_the_unit_that_takes_most_counts(seeded, images):
    model, image = seeded(Blocks).eval(), images(1, size=24)[0]
    one = {name: estimated(model, image, name) for name in ('stem', 'block', 'head')}
    assert estimated(model, image, *one) == max(one.values()) == one['block']


def test_more_images_than_there_are_take_no_more(seeded, images):
    model, image = seeded(Blocks).eval(), images(1, size=24)[0]
    sizes = [estimated(model, image, 'block', batch_size=size) for size in (2, 4, 8, 16)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]  # four batches of two images
