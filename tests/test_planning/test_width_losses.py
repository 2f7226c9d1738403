"""The losses that widths are measured by, against the formulas."""

import pytest
import torch
from calibration_nets import ResidualNet
from calibration_nets import _calls_of as calls_of
from torch import nn
from width_study import BUDGET, Classifier

from mmbitsplit.planning.width_losses import batches_to_judge
from mmbitsplit.structures import CalibrationSpec, Widths


def test_batches_that_no_layer_was_solved_on_are_judged_where_there_are_enough():
    spec = CalibrationSpec(holdout=0.125)
    assert batches_to_judge(32, spec) == ([7, 15, 23, 31], True)
    assert batches_to_judge(16, spec) == (list(range(16)), False)


def test_the_cross_entropy_needs_labels(seeded, images, study):
    model, batches = seeded(Classifier), images()
    labelled = [(x, torch.arange(len(x))) for x in batches]
    budget = {**BUDGET, 'loss': 'cross_entropy'}

    def run(model, batch):
        return model(batch[0])

    with study(model, labelled, budget=budget, run=run) as found:
        widths = {'blocks.0.conv1': Widths(2, 2)}
        loss = found.loss_of(widths)
        found.bank.install(widths)
        with torch.no_grad():
            expected = [nn.functional.cross_entropy(model(x), labels) for x, labels in labelled]
        assert loss == pytest.approx(float(sum(expected) / len(expected)), rel=1e-5)
    with pytest.raises(ValueError, match='needs the class of each image'), \
            study(model, batches, budget=budget):
        pass
    with pytest.raises(ValueError, match='ends in one layer of class scores'), \
            study(seeded(ResidualNet), labelled, budget=budget, run=run):
        pass


def test_the_divergence_of_blocks_is_that_of_their_channels(seeded, images, study):
    with study(seeded(ResidualNet), budget={**BUDGET, 'loss': 'block_kl'}) as found:
        model, plan = found.prepared.model, {'blocks.1.conv1': Widths(2, 2)}
        names = list(found.losses.raw.modules)
        assert {'blocks.0', 'blocks.1', 'classify'} <= {*names}
        loss, outputs = found.loss_of(plan), {}
        for _ in ('quantized', 'float'):
            for name in names:
                module = found.losses.raw.modules[name]
                with calls_of(module) as calls, torch.no_grad():
                    for x in images():
                        model(x)
                outputs.setdefault(name, []).append(torch.cat([y for _, y in calls]).double())
            found.bank.take_out()
        expected = 0.0
        for ours, wanted in outputs.values():
            ours, wanted = (one.log_softmax(1) for one in (ours, wanted))
            expected += float((wanted.exp() * (wanted - ours)).sum(1).mean()) / len(outputs)
        assert loss == pytest.approx(expected, rel=1e-4)
        row = found.measure().layers['blocks.1.conv1']
        assert row[Widths(2, 2)] == pytest.approx(loss - found.base_loss)
        assert row[Widths(2, 2)] > row[Widths(4, 4)] > 0


def test_kl_is_refused_for_raw_outputs(seeded, study):
    with pytest.raises(ValueError, match="quantization.budget: loss='kl' is for a model"):
        with study(seeded(ResidualNet), budget={**BUDGET, 'loss': 'kl'}):
            pass
