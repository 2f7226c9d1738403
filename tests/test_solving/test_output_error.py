"""How far outputs are off: in parts of their spread, or of themselves where they are constant."""

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import build_method, calibrate
from mmbitsplit.passes.team import Team
from mmbitsplit.planning.sensitivity import relative_error
from mmbitsplit.solving.output_error import output_error, output_scale
from mmbitsplit.structures import LayerMeans


class Pooled(nn.Module):
    """A learned token asks an image, as in a pooling head or the first layer of a decoder."""

    def __init__(self, size=96):
        super().__init__()
        self.inputs, self.token = nn.Linear(8, size), nn.Parameter(torch.randn(1, 1, size))
        self.norm, self.q = nn.LayerNorm(size), nn.Linear(size, size)
        self.out = nn.Linear(size, 4)

    def query(self):
        return self.q(self.norm(self.token))

    def forward(self, x):
        keys = self.inputs(x)
        q = self.q(self.norm(self.token).expand(len(x), 20, -1))
        return self.out((q @ keys.transpose(1, 2)).softmax(-1) @ keys)


@pytest.mark.parametrize('seed', range(4))
def test_a_layer_with_the_same_input_everywhere(seed, make_spec):
    """Its reported error is of the size of the true one, not millions of it."""
    torch.manual_seed(seed)
    model = Pooled().eval()
    batches = [torch.randn(2, 9, 8) for _ in range(3)]
    with torch.no_grad():
        before = model.query()
        _, report = calibrate(model, batches, make_spec(weight={'num_bits': 4}),
                              run=lambda model, x: model(x))
        true = float(((model.query() - before).norm() / before.norm()).square())
    row = next(layer for layer in report.layers if layer.name == 'q')
    assert true < 1e-4
    assert row.error < 1e-4 and row.error_rounding < 1e-4


def test_the_error_is_told_in_parts_of_the_spread_where_there_is_one():
    torch.manual_seed(0)
    weight, inputs = torch.randn(1, 3, 5), torch.randn(1, 5, 400)
    y = weight @ inputs + 1000  # far from zero: an energy of a million spreads
    means = LayerMeans(x_sum=inputs.sum(-1), y_sum=y.sum(-1), count=400)
    off = weight + 0.1 * torch.randn(1, 3, 5)
    judged = output_error(off, means, inputs, y, build_method({'type': 'BitSplit'}), Team())
    error = (off - weight) @ inputs
    error, spread = ((value - value.mean(-1, keepdim=True)).double().square().sum()
                     for value in (error, y))
    assert judged.error == pytest.approx(float(error / spread), rel=1e-2)


@pytest.mark.parametrize(('spread', 'energy', 'scale'), [
    (4.0, 9.0, 4.0), (1e-6, 1.0, 1e-6), (1e-14, 1.0, 1.0), (-1e-14, 1.0, 1.0), (0.0, 0.0, 1.0)])
def test_what_errors_are_told_in_parts_of(spread, energy, scale):
    assert output_scale(*torch.tensor([spread, energy], dtype=torch.float64)) == scale


def test_sensitivity_to_outputs_that_are_constant():
    constant = {'head': torch.full((1, 2, 50), 3.0) * (1 + 1e-7 * torch.rand(1, 2, 50))}
    assert relative_error(constant, {'head': constant['head'] * 1.01}) \
        == pytest.approx(1e-4, rel=1e-2)
