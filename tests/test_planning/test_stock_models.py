"""The units of stock models: which are found, and that they are functions of one tensor."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from divided_nets import divide
from stock_models import CLASSIFIERS, DETECTORS, build
from torch import nn
from unit_oracle import assert_alone, assert_isolated, following

from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.passes.replay import Tape, barrier, recording, replaying
from mmbitsplit.structures import Unit

pytestmark = pytest.mark.slow

# Of units with several layers, how often each class comes; chains by their number of modules.
KINDS = {
    'ResNet-18': {'BasicBlock': 8}, 'ResNet-50': {'Bottleneck': 16}, 'ResNeXt': {'Bottleneck': 16},
    'RegNet': {'Bottleneck': 21, 'ResLayer': 1},  # of one block
    'MobileNetV2': {'InvertedResidual': 15, 'Sequential': 2},  # the same
    'VGG': {7: 1, 8: 1}, 'Swin': {'SwinBlock': 4}, 'ViT': {'TransformerEncoderLayer': 3},
    'YOLOX': {'CSPLayer': 6, 'DarknetBottleneck': 6, 'SPPBottleneck': 1, 'Sequential': 6},
    'RetinaNet': {'BasicBlock': 8, 4: 2}, 'FCOS': {'BasicBlock': 8, 4: 1, 5: 1},
    'ATSS': {'BasicBlock': 8, 4: 2}, 'Faster R-CNN': {'BasicBlock': 8, 4: 1},
    'Mask R-CNN': {'BasicBlock': 8, 4: 1, 'FCNMaskHead': 1},
    'RTMDet': {'CSPLayer': 8, 'SPPBottleneck': 1, 'Sequential': 1}}
# Single layers, and why they are: words of the reasons.
SINGLE = {
    'RetinaNet': ('neck.lateral_convs.0.conv', "'neck' takes 4 tensors"),
    'FCOS': ('bbox_head.conv_centerness', "'bbox_head' takes 5 tensors"),
    'Faster R-CNN': ('roi_head.bbox_head.fc_cls', "'roi_head.bbox_head' gives 2 tensors"),
    'Mask R-CNN': ('neck.fpn_convs.2.conv', "'neck' takes 4 tensors"),
    'YOLOX': ('backbone.stage2.1.main_conv.conv',
              "'backbone.stage2.1' holds 9 layers, more than 8"),
    'RTMDet': ('backbone.stage1.0.conv', "'backbone.stage1' only calls parts one after another, "
               "and 'backbone.stage1.1' is a unit")}


@dataclass
class Case:
    """A model, what it is run on, and its units."""

    name: str
    model: nn.Module
    batch: Any
    units: tuple[Unit, ...]


@pytest.fixture(scope='module', params=[*CLASSIFIERS, *DETECTORS])
def case(request) -> Case:
    model, batch = build(request.param)
    units = divide(model, [copy.deepcopy(batch)], run=run,
                   barriers=[barrier(replay_points(model))])
    return Case(request.param, model, batch, units)


def run(model: nn.Module, batch: Any) -> Any:
    return model.test_step(batch)


def test_kinds_of_units(case):
    kinds = Counter(len(unit.modules) if len(unit.modules) > 1
                    else type(case.model.get_submodule(unit.name)).__name__
                    for unit in case.units if len(unit.layers) > 1)
    assert kinds == KINDS[case.name]
    for unit in case.units:
        assert len(unit.layers) <= 8 and (unit.name, unit.reason) == (
            unit.modules[0], unit.reason if len(unit.layers) == 1 else '')
        if len(unit.layers) == 1:
            assert unit.modules == unit.layers
    if case.name in SINGLE:
        layer, reason = SINGLE[case.name]
        assert [unit.reason for unit in case.units if unit.layers == (layer,)] == [reason]


def test_units_are_functions_of_one_tensor_and_share_nothing_else(case):
    def again() -> Any:
        return run(case.model, copy.deepcopy(case.batch))

    tape, points = Tape(), replay_points(case.model)
    with recording(points, tape, lambda: 0), following(case.model, case.units) as calls, \
            torch.no_grad():
        again()
    assert_alone(case.model, case.units, calls)
    with replaying(points, tape, lambda: 0):
        assert_isolated(case.model, case.units, calls, again)
