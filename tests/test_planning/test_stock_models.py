"""The units of stock models: which are found, and that they are functions of one tensor."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from divided_nets import divide
from stock_models import CLASSIFIERS, DETECTORS, build
from torch import Tensor, nn

from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.passes.replay import Tape, barrier, recording, replaying
from mmbitsplit.structures import Unit

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


@dataclass
class Call:
    """One call of a module of a unit."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    output: Any = None


def test_a_unit_run_alone_gives_what_it_gave(case):
    calls, _ = recorded(case)
    for unit in case.units:
        modules = [case.model.get_submodule(name) for name in unit.modules]
        for start, end in spans(unit, calls):
            args, kwargs = copy.deepcopy((calls[start].args, calls[start].kwargs))
            y = modules[0](*args, **kwargs)
            for module in modules[1:]:
                y = module(y)
            assert isinstance(y, Tensor)
            torch.testing.assert_close(y, calls[end].output, rtol=1e-4, atol=1e-4)


def test_nothing_passes_from_a_unit_but_its_output(case):
    """With noise inside units, and what they gave put in place, all others get what they got."""
    calls, tape = recorded(case)
    ends = {end: calls[end].output for unit in case.units if len(unit.layers) > 1
            for _, end in spans(unit, calls)}
    noisy = [name for unit in case.units if len(unit.layers) > 1 for name in unit.layers]
    firsts = {start for unit in case.units for start, _ in spans(unit, calls)}
    hooks = [case.model.get_submodule(name).register_forward_hook(
        lambda module, args, output: torch.randn_like(output)) for name in noisy]
    try:
        with replaying(replay_points(case.model), tape, lambda: 0), \
                following(case, replaced=ends) as again:
            run(case.model, copy.deepcopy(case.batch))
    finally:
        for hook in hooks:
            hook.remove()
    assert [call.name for call in again] == [call.name for call in calls]
    for number in firsts:
        (x,) = [value for value in (*again[number].args, *again[number].kwargs.values())
                if isinstance(value, Tensor)]
        (expected,) = [value for value in (*calls[number].args, *calls[number].kwargs.values())
                       if isinstance(value, Tensor)]
        assert torch.equal(x, expected), again[number].name


def recorded(case: Case) -> tuple[list[Call], Tape]:
    tape = Tape()
    with recording(replay_points(case.model), tape, lambda: 0), following(case) as calls:
        run(case.model, copy.deepcopy(case.batch))
    return calls, tape


def spans(unit: Unit, calls: Sequence[Call]) -> Iterator[tuple[int, int]]:
    """Numbers of the first and the last call of a unit, each time it is called."""
    for start, call in enumerate(calls):
        if call.name == unit.modules[0]:
            end = start
            for name in unit.modules[1:]:
                end += 1
                assert calls[end].name == name
            yield start, end


@contextmanager
def following(case: Case, replaced: dict[int, Tensor] | None = None) -> Iterator[list[Call]]:
    """Lists calls of modules of units; some outputs are replaced, by number of the call."""
    calls: list[Call] = []
    running: list[int] = []

    def enter(name: str):
        def hook(module, args, kwargs):
            running.append(len(calls))
            calls.append(Call(name, *copy.deepcopy((args, kwargs))))
        return hook

    def leave(module, args, output):
        number = running.pop()
        if replaced and number in replaced:
            output = replaced[number].clone()
        calls[number].output = copy.deepcopy(output)
        return output

    hooks = []
    for name in dict.fromkeys(name for unit in case.units for name in unit.modules):
        module = case.model.get_submodule(name)
        hooks += [module.register_forward_pre_hook(enter(name), with_kwargs=True),
                  module.register_forward_hook(leave)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
