"""A small request for widths by budget, and how a model is measured by it."""

import pytest
from calibration_nets import ResidualNet

from mmbitsplit.planning.width_sensitivity import WidthSensitivity

QUICK = dict(method=dict(type='RoundToNearest'), activation=dict(mode='per_tensor'))
BUDGET = dict(weight_bits=4, widths=[2, 4, 8], activation_widths='tied')


class Classifier(ResidualNet):
    """One layer of class scores."""

    def forward(self, x):
        return self.classify(self.blocks(self.relu(self.bn(self.stem(x)))).mean((2, 3)))

    def __init__(self):
        super().__init__()
        del self.regress


@pytest.fixture
def study(images, make_spec, run_model):
    def make(model, batches=None, points=(), team=None, journal=None, run=run_model,
             progress=lambda step: None, **changes):
        changes = {'budget': BUDGET, **QUICK, **changes}
        return WidthSensitivity(model, images() if batches is None else batches,
                                make_spec(**changes), run=run, replay_points=points,
                                team=team, journal=journal, progress=progress)
    return make
