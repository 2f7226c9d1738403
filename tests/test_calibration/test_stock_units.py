"""Stock models are solved in units: shared towers, branches on proposals, windows of attention."""

import copy

import pytest
from stock_models import build
from unit_methods import known  # noqa: F401

from mmbitsplit.calibration import calibrate
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.structures import QuantSpec

SPEC = dict(method=dict(type='LearnedScale', steps=2), weight=dict(num_bits=4),
            calibration=dict(rows_per_layer=256, holdout=0.5))
# Units of several layers beside those of the backbone: what they are called.
TOGETHER = {'RetinaNet': {'bbox_head.cls_convs.0', 'bbox_head.reg_convs.0'},
            'Faster R-CNN': {'roi_head.bbox_head.shared_fcs.0'},
            'Swin': {'backbone.stages.0.blocks.0', 'backbone.stages.0.blocks.1'}}


@pytest.mark.slow
@pytest.mark.parametrize('name', TOGETHER)
def test_units_are_improved_together(name):
    model, batch = build(name)
    _, report = calibrate(model, [batch, copy.deepcopy(batch)], QuantSpec.from_dict(SPEC),
                          run=lambda model, batch: model.test_step(batch),
                          replay_points=replay_points(model))
    errors = {}
    for layer in report.layers:
        errors.setdefault(layer.unit, layer.unit_errors)
        assert layer.unit_errors == errors[layer.unit]
        assert layer.unit_errors[layer.unit_taken] == min(layer.unit_errors.values())
    assert all(set(found) == {'layers', 'learned scale'} for found in errors.values())
    several = {layer.unit for layer in report.layers
               if sum(other.unit == layer.unit for other in report.layers) > 1}
    assert several >= TOGETHER[name]
    assert 'learned scale' in {layer.unit_taken for layer in report.layers
                               if layer.unit in several}
