"""Methods that solve units, for tests: public protocol only."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch

from mmbitsplit.methods import METHODS, MSE, BitSplit, register_method
from mmbitsplit.methods.unit_problem import UnitCandidate, UnitProblem


@dataclass(frozen=True, kw_only=True)
class LearnedScale(MSE):
    """Solves layers as its base does, then learns one factor of a unit's weight scales.

    Args:
        steps: Of Adam, a call each.
        rate: Of learning.
    """

    needs = ('sums', 'unit_io')
    solves = 'unit'
    steps: int = 12
    rate: float = 0.01

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """Yields one candidate."""
        factor = torch.ones((), requires_grad=True)
        optimizer = torch.optim.Adam([factor], self.rate)
        quantizers = [layer.weight_quantizer for layer in problem.layers.values()]
        scales = [quantizer.scale for quantizer in quantizers]
        for step in range(self.steps):
            order = torch.randperm(len(problem.fit), generator=problem.generator(step))
            call = problem.fit[order[0]]
            for quantizer, scale in zip(quantizers, scales):
                quantizer.scale = scale * factor
            loss = (problem.forward(call.quantized_input) - call.float_output).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for quantizer, scale in zip(quantizers, scales):
            quantizer.scale = scale * factor
        yield problem.candidate('learned scale')


@dataclass(frozen=True, kw_only=True)
class SavedScale(LearnedScale):
    """The same, and goes on where a process that was killed has been."""

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """Yields one candidate."""
        factor = torch.ones((), requires_grad=True)
        optimizer = torch.optim.Adam([factor], self.rate)
        quantizers = [layer.weight_quantizer for layer in problem.layers.values()]
        scales = [quantizer.scale for quantizer in quantizers]
        state = problem.snapshots.load() or {'step': 0}
        if state['step']:
            factor.data.copy_(state['factor'])
            optimizer.load_state_dict(state['optimizer'])
        for step in range(state['step'], self.steps):
            STEPS.append((problem.unit.name, step))
            order = torch.randperm(len(problem.fit), generator=problem.generator(step))
            call = problem.fit[order[0]]
            for quantizer, scale in zip(quantizers, scales):
                quantizer.scale = scale * factor
            loss = (problem.forward(call.quantized_input) - call.float_output).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            problem.progress(step + 1, self.steps)
            problem.snapshots.save({'step': step + 1, 'factor': factor,
                                    'optimizer': optimizer.state_dict()})
        for quantizer, scale in zip(quantizers, scales):
            quantizer.scale = scale * factor
        yield problem.candidate('learned scale')


STEPS: list[tuple[str, int]] = []  # of ``SavedScale``, as they were taken


@dataclass(frozen=True, kw_only=True)
class Watched(BitSplit):
    """Solves layers as its base does; units by a function that a test sets."""

    needs = ('sums', 'unit_io')
    solves = 'unit'

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """Yields what the test's function gives."""
        return WATCHER['solve'](problem)


WATCHER: dict[str, Callable[[UnitProblem], Iterable[UnitCandidate]]] = {
    'solve': lambda problem: ()}


def register() -> None:
    """Makes them known by name, for the rest of the process."""
    register_method(LearnedScale)
    register_method(SavedScale)
    register_method(Watched)


@pytest.fixture(autouse=True)
def known():
    """Known in the tests of files that import this: others go through all methods there are."""
    before = dict(METHODS)
    register()
    yield
    METHODS.clear()
    METHODS.update(before)
