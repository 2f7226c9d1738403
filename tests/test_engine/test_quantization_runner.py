"""The base's Runner adds our hook to any hooks; averages of training stay out of tests."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner

from mmbitsplit.engine import QuantizationHook, QuantizationRunner
from mmbitsplit.engine.quantization_runner import runner_of
from mmbitsplit.engine.results.artifacts import quantized_config
from mmbitsplit.engine.run.weight_averages import is_average, leave_out_averages

BASE = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'quantization.py'
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage')


class OwnAverage(EMAHook):
    """An average of a user's own."""


@pytest.fixture
def build(tmp_path, toy_model):
    MODELS.register_module('ToyOfRunners', force=True, module=type(toy_model()))

    def make(**settings) -> Runner:
        return runner_of(Config(dict(
            model=dict(type='ToyOfRunners'), work_dir=str(tmp_path),
            experiment_name=tmp_path.name, **settings)))
    yield make
    MODELS.module_dict.pop('ToyOfRunners')


@pytest.fixture
def build_ours(build):
    return lambda **settings: build(runner_type=Config.fromfile(BASE).runner_type, **settings)


def hooks(runner: Runner, kind: type) -> list[Hook]:
    return [hook for hook in runner._hooks if isinstance(hook, kind)]


def test_the_base_has_no_key_that_upstream_has():
    assert set(Config.fromfile(BASE)) == {'runner_type', 'quantization'}


def test_the_runner_is_found_by_its_name_alone():
    assert RUNNERS.get('mmbitsplit.QuantizationRunner') is QuantizationRunner


@pytest.mark.parametrize('custom', [None, [EMA], [dict(type='mmbitsplit.QuantizationHook')]])
def test_there_is_one_hook_whatever_others_there_are(custom, build_ours):
    runner = build_ours(custom_hooks=copy.deepcopy(custom))
    assert isinstance(runner, QuantizationRunner)
    assert len(hooks(runner, QuantizationHook)) == 1
    assert len(hooks(runner, EMAHook)) == (custom == [EMA])


def test_the_hook_comes_before_all_that_look_at_the_model(build_ours):
    runner = build_ours(custom_hooks=[copy.deepcopy(EMA)])
    assert runner._hooks.index(hooks(runner, QuantizationHook)[0]) < runner._hooks.index(
        hooks(runner, EMAHook)[0])


def test_a_plain_config_gets_a_plain_runner(build):
    runner = build()
    assert type(runner) is Runner and not hooks(runner, QuantizationHook)


def test_averages_are_left_out(build_ours):
    runner = build_ours(custom_hooks=[copy.deepcopy(EMA)])
    runner.register_hook(OwnAverage())
    kept = [hook for hook in runner._hooks if not isinstance(hook, EMAHook)]
    leave_out_averages(runner)
    assert runner._hooks == kept


def test_a_quantized_model_is_not_averaged_with_float_weights(build_ours):
    """What mmengine does around a test swaps weights of the float copy into the model."""
    runner = build_ours(custom_hooks=[copy.deepcopy(EMA)])
    runner.call_hook('before_run')
    runner._has_loaded, runner._load_from = True, None

    def quantize(runner):  # the hook's own work is tested elsewhere
        leave_out_averages(runner)
        with torch.no_grad():
            runner.model.head.weight.fill_(7.0)
    hooks(runner, QuantizationHook)[0].before_test = quantize
    for step in ('before_test', 'before_test_epoch'):
        runner.call_hook(step)
    assert torch.all(runner.model.head.weight == 7.0)


@pytest.mark.parametrize('hook, average', [
    (EMA, True), (dict(type='mmengine.hooks.EMAHook'), True), (dict(type=OwnAverage), True),
    (dict(type='SyncNormHook'), False), (dict(type=Hook), False), (Hook(), False)])
def test_averages_of_a_config(hook, average):
    assert is_average(hook) is average


def test_the_config_of_the_result_has_neither_runner_nor_average():
    cfg = Config(dict(model=dict(type='Toy'), runner_type='mmbitsplit.QuantizationRunner',
                      custom_hooks=[EMA, dict(type='SyncNormHook')], quantization=dict()))
    ours = quantized_config(cfg)
    assert 'runner_type' not in ours and ours.custom_hooks == [dict(type='SyncNormHook')]
    cfg.runner_type = 'FlexibleRunner'
    assert quantized_config(cfg).runner_type == 'FlexibleRunner'
    assert MODELS.get(ours.model.type) is not None
