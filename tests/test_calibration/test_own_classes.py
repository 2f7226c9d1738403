"""Classes that pad, transform or go on behind their product are calibrated as plain ones are."""

import pytest
import torch
from own_classes import OwnClasses
from torch.utils._pytree import tree_leaves

from mmbitsplit.calibration import Sensitivity


def mixed_sizes(images):
    """Odd and even ones, which TensorFlow's rule pads differently."""
    return [batch for size in (8, 9) for batch in images(2, size)]


@pytest.mark.parametrize('bits', [8, 3])
def test_lockstep_is_the_plain_quadratic_calibration(seeded, images, make_spec, assert_like_naive,
                                                     bits):
    batches = mixed_sizes(images)
    with torch.no_grad():
        before = [tree_leaves(seeded(OwnClasses)(x)) for x in batches]
    model, report = assert_like_naive(lambda: seeded(OwnClasses), batches,
                                      make_spec(weight={'num_bits': bits}))
    assert [layer.name for layer in report.layers] == ['stem', 'body', 'towers', 'last']
    assert report.kept_float == [] and report.folded_batch_norms == ['norm']
    if bits == 8:
        for x, expected in zip(batches, before, strict=True):
            for found, wanted in zip(tree_leaves(model(x)), expected, strict=True):
                assert (found - wanted).norm() < 0.03 * wanted.norm()


def test_each_layer_can_be_tried_alone(seeded, images, make_spec, run_model):
    probe = Sensitivity(seeded(OwnClasses), mixed_sizes(images), make_spec(), run=run_model)
    x = images()[0]
    with torch.no_grad():
        before = probe.model(x)
        for plan in probe.layers:
            errors = [trial.error for trial in probe.trials(plan, (2, 8))]
            assert errors[0] > errors[1] > 0, plan.name
        assert all(torch.equal(a, b) for a, b in zip(probe.model(x), before))
