"""Small layers with the sums that solvers see."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmbitsplit.functional import add_ridge, layer_statistics, quadratic_objective
from mmbitsplit.structures import LayerStatistics, WeightSolution


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """These tensors are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Problem:
    """A layer: inputs x (G, N, K), float outputs y (G, M, K), weight (G, M, N), their sums."""

    x: Tensor
    y: Tensor
    weight: Tensor
    sums: LayerStatistics

    @property
    def solver_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.sums.gram, self.sums.cross, self.weight

    def objective(self, weight: Tensor) -> Tensor:
        """(G, M), of real weights."""
        return quadratic_objective(self.sums.gram, self.sums.cross, self.sums.y_sq, weight)

    def objective_of(self, solution: WeightSolution) -> Tensor:
        """(G, M), of codes times scale, computed anew."""
        return self.objective(solution.codes * solution.scale.unsqueeze(-1))


def _make_problem(seed: int, *, groups: int = 1, outputs: int = 4, inputs: int = 6,
                  positions: int | None = None, ridge: float = 0.01) -> Problem:
    """Correlated inputs, outputs of slightly different inputs, as in a half-quantized model."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = positions or 3 * inputs + 20
    mix = torch.eye(inputs, dtype=torch.float64) + 0.5 * normal(groups, inputs, inputs)
    x = mix @ normal(groups, inputs, positions)
    weight = normal(groups, outputs, inputs)
    y = weight @ (x + 0.1 * normal(*x.shape))
    return Problem(x, y, weight, add_ridge(layer_statistics(x, y), weight, ridge))


@pytest.fixture
def make_problem():
    return _make_problem
