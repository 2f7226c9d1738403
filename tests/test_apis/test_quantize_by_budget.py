"""``quantize_model`` with a budget: real tables, real plans, from Python."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.functional import payload_bytes

METHOD = dict(type='RoundToNearest')


class Uneven(nn.Module):
    """A layer whose weights need bits, and a large one after it that does not matter."""

    def __init__(self):
        super().__init__()
        self.stem, self.needy = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.idle, self.head = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1)
        self.straight = nn.Conv2d(8, 4, 3)
        generator = torch.Generator().manual_seed(0)
        for value in self.parameters():
            nn.init.normal_(value, std=0.3, generator=generator)
        nn.init.normal_(self.idle.weight, std=1e-3, generator=generator)

    def forward(self, x):
        x = self.needy(self.stem(x).relu()).relu()
        return self.head(self.idle(x).relu()) + self.straight(x)


def batches():
    return list(torch.randn(8, 2, 3, 12, 12, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope='module')
def mixed():
    model, steps = Uneven(), []
    report = quantize_model(model, batches(), dict(method=METHOD, budget=dict(
        weight_bits=4, widths=[2, 4, 8])), progress=steps.append)
    return model, report, steps


def test_bits_go_where_they_matter_and_the_size_is_as_planned(mixed):
    model, report, steps = mixed
    assert model.idle.num_bits == 2 and model.needy.num_bits > 4
    plan = report.budget['plans'][report.budget['chosen']]
    assert plan['costs']['weight_bits'] <= 4
    assert plan['trial']['payload'] == payload_bytes(model.state_dict().values())
    assert plan['costs']['bytes'] == pytest.approx(plan['trial']['payload'], rel=0.02)
    losses = {plan['name']: plan['trial']['loss'] for plan in report.budget['plans']}
    assert losses['mixed'] < losses['uniform W4']
    assert {'widths, solve', 'widths, measure', 'layers'} <= {step.stage for step in steps}


def test_the_plan_of_the_report_gives_the_model_again(mixed):
    model, report, _ = mixed
    again = Uneven()
    quantize_model(again, batches(), dict(method=METHOD), plan=report.plan)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_the_smallest_model_for_a_metric():
    model, calls, inputs = Uneven(), [], batches()
    wanted = model.eval()(inputs[0])

    def evaluate(model):
        calls.append(1)
        with torch.no_grad():
            error = (model(inputs[0]) - wanted).square().sum() / wanted.square().sum()
        return 100 - 100 * float(error)
    report = quantize_model(model, inputs, dict(method=METHOD, budget=dict(
        max_drop=3, evaluations=3, widths=[2, 4, 8])), evaluate=evaluate)
    assert 2 <= len(calls) <= 4 and calls[0] and report.budget['held']
    plan = report.budget['plans'][report.budget['chosen']]
    assert plan['trial']['drop'] <= 3
    assert plan['trial']['drop'] == pytest.approx(100 - evaluate(model), abs=1e-3)
    with pytest.raises(ValueError, match='max_drop needs a metric.*evaluate='):
        quantize_model(Uneven(), inputs, dict(budget=dict(max_drop=3)))
