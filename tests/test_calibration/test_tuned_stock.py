"""Stock models are tuned: gradients reach all layers, proposals are replayed."""

import copy

import pytest
import torch
from stock_models import build

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.engine.run.presets import replay_points

pytestmark = pytest.mark.slow

TUNED = dict(weight=dict(num_bits=3), activation=dict(num_bits=4),
             method=dict(type='RoundToNearest'), calibration=dict(rows_per_layer=64),
             tuning=dict(type='OutputTuning', steps=3, judge_every=1, learning_rate=2e-4))


@pytest.mark.parametrize(('name', 'loss'), [
    ('RetinaNet', 'confidence'), ('Mask R-CNN', 'confidence'), ('YOLOX', 'confidence'),
    ('Swin', 'kl')])
def test_every_layer_of_a_stock_model_is_reached_and_held_out_loss_does_not_rise(name, loss):
    model, batch = build(name)
    other = copy.deepcopy(batch)
    images = other['inputs'] if isinstance(other['inputs'], list) else [other['inputs']]
    for image in images:
        image.copy_(image.flip(-1))
    _, report = calibrate(model, [batch, other], read_request(TUNED),
                          run=lambda model, batch: model.test_step(copy.deepcopy(batch)),
                          replay_points=replay_points(model))
    found = report.tuning[0]
    assert found['loss'] == loss and 'unreached' not in found
    assert found['learned']['biases'] == sum(
        row.shape[1] if row.kind == 'conv_transpose2d' else row.shape[0] for row in report.layers)
    assert 'not_finite_at_step' not in found and len(found['judged']) == 4
    assert found['held_out_after'] <= found['held_out_before']
    with torch.no_grad():  # what comes after the raw outputs runs as before
        model.test_step(copy.deepcopy(batch))
