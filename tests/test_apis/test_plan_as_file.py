"""A plan given as a file: written by one run, edited by hand, taken by another."""

import json

import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.structures import plan_text


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_an_edited_plan_is_taken_and_an_unedited_one_changes_nothing(tmp_path):
    batches = list(torch.randn(3, 2, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    first, again, edited = network(), network(), network()
    report = quantize_model(first, batches, dict(weight=dict(num_bits=3)))
    path = tmp_path / 'plan.json'
    path.write_text(plan_text(report.plan))

    # The request is another: what the plan says of a layer wins.
    quantize_model(again, batches, dict(activation=dict(num_bits=4)), plan=path)
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))

    plan = json.loads(path.read_text())
    plan['layers'][1]['weight_bits'], plan['layers'][2]['weight_bits'] = 2, None
    path.write_text(json.dumps(plan))
    report = quantize_model(edited, batches, plan=path)
    assert [(row.name, row.weight_bits, row.activation_bits) for row in report.layers] == [
        ('0', 8, None), ('2', 2, 8), ('6', 8, 8)]
    assert isinstance(edited[4], nn.Conv2d) and edited[2].codes.abs().max() == 1
