"""What is kept of a unit's inputs and outputs fits into the budget, and belongs together."""

import pytest
import torch
from torch import nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.passes.unit_evidence import Collection, UnitEvidence
from mmbitsplit.passes.unit_module import UnitModule
from mmbitsplit.structures import Unit

BATCHES, IMAGES = 4, 6


def collect(modules, make_input, budget, holdout=0.25, given=None):
    """Runs a unit on all batches; the quantized input is the float one plus 1."""
    torch.manual_seed(0)
    names = tuple(str(index) for index in range(len(modules)))
    function = UnitModule(Unit(names[0], names, names), tuple(modules))
    evidence = UnitEvidence(
        function, {name: layer_geometry(module) for name, module in zip(names, modules)},
        dict.fromkeys(range(BATCHES), 1),
        Collection(batches=BATCHES, sizes=dict.fromkeys(range(BATCHES), 1.0), budget=budget,
                   holdout=holdout))
    inputs = {}
    with torch.no_grad():
        for batch in range(BATCHES):
            x = y = make_input()
            for index, module in enumerate(modules):
                function.note(index, (y,), {})
                y = module(y)
            y = y if given is None else given(y)
            if batch == 0:
                evidence.adopt(evidence.decide(batch, x, y, function))
            evidence.take_float(batch, x, y)
            inputs[batch] = [x + 1]
    assert all(map(evidence.complete, range(BATCHES)))
    return evidence, evidence.calls(inputs)


def stored(calls):
    return sum(value.nbytes for call in calls for value in (
        call.float_input, call.quantized_input, call.float_output))


@pytest.mark.parametrize('part', [1.0, 0.5, 0.2])
def test_units_with_global_reach_keep_as_many_images_as_fit(part):
    layers = [nn.Linear(8, 16), nn.Linear(16, 4)]
    whole = 4 * BATCHES * IMAGES * 10 * (2 * 8 + 4)
    evidence, calls = collect(layers, lambda: torch.randn(IMAGES, 10, 8), int(part * whole))
    kept = sum(len(call.float_input) for call in calls)
    assert stored(calls) <= part * whole and kept >= int(part * BATCHES * IMAGES) - 1
    assert {call.batch for call in calls if call.held_out} == {3}
    for call in calls:
        assert torch.equal(call.quantized_input, call.float_input + 1)
        torch.testing.assert_close(evidence.run(call.float_input), call.float_output)


def test_convolutions_keep_crops_that_fit():
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)]
    evidence, calls = collect(layers, lambda: torch.randn(IMAGES, 4, 64, 64), 200_000)
    assert 100_000 < stored(calls) <= 200_000
    assert len({call.float_input.shape[1:] for call in calls}) == 1
    for call in calls:
        assert torch.equal(call.quantized_input, call.float_input + 1)
        torch.testing.assert_close(evidence.run(call.float_input), call.float_output)


def test_crops_that_give_something_else_are_not_taken():
    class WholeMean(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + x.mean((2, 3), keepdim=True)

    evidence, calls = collect([WholeMean(4, 4, 3, padding=1)],
                              lambda: torch.randn(IMAGES, 4, 64, 64), 2_000_000)
    assert evidence.crops is None and 0 < evidence.kept_as.share < 1 and not evidence.problem
    assert stored(calls) <= 2_000_000 and calls[0].float_input.shape[-1] == 64


@pytest.mark.parametrize(('given', 'problem'), [
    (lambda y: y + 1, 'gives another output when it is called again'),
    (lambda y: (y, y), 'is no function of one tensor'),
    (lambda y: y[:2], 'is no function of one tensor')])
def test_what_is_no_function_of_its_input_says_so(given, problem):
    evidence, calls = collect([nn.Linear(8, 4)], lambda: torch.randn(IMAGES, 8), 1 << 20,
                              given=given)
    assert problem in evidence.problem and not calls


@pytest.mark.parametrize('batches', [4, 1])
def test_few_batches_are_divided_by_images(batches):
    evidence, _ = collect([nn.Linear(8, 4)], lambda: torch.randn(IMAGES, 8), 1 << 20)
    evidence.what = Collection(batches=batches, sizes={}, holdout=0.25)
    calls = evidence.calls({0: [torch.zeros(IMAGES, 8)]})
    assert [(call.held_out, len(call.float_input)) for call in calls] == (
        [(False, 6)] if batches == 4 else [(False, 5), (True, 1)])
