"""Quantizes the model of an mmengine Runner by the ``quantization`` dict of its config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmbitsplit.calibration import Journal, Progress, calibrate, current_team, read_request
from mmbitsplit.calibration.budget import Callbacks, calibrate_within
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.calibration.plan_trials import MetricTarget
from mmbitsplit.engine.data.calibration_data import (
    CalibrationData,
    evaluated_files,
    load_calibration_data,
)
from mmbitsplit.engine.data.calibration_images import reading_data_set
from mmbitsplit.engine.files.choice_writer import keeping_choice, write_choice
from mmbitsplit.engine.files.layer_log import layer_log
from mmbitsplit.engine.files.plan_writer import write_plan
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.progress import progress_bar
from mmbitsplit.models import PreparedModel
from mmbitsplit.planning import check_request
from mmbitsplit.report.multiplications import multiplications_text
from mmbitsplit.structures import BitPlan, QuantizationReport, QuantSpec


@dataclass(frozen=True)
class QuantizedRun:
    """What came of quantizing a Runner's model in place.

    Args:
        prepared: The model and its layers.
        report: What was done to each layer.
        data: The calibration images.
        float_bytes: Bytes of the float model's parameters and buffers.
    """

    prepared: PreparedModel
    report: QuantizationReport
    data: CalibrationData
    float_bytes: int


def read_spec(cfg: Config) -> QuantSpec:
    """Reads and checks the ``quantization`` dict of a config.

    Raises:
        ValueError: It is missing, or a key, method or value is unknown.
    """
    request = cfg.get('quantization')
    if request is None:
        raise ValueError("The config has no 'quantization' dict; inherit one of "
                         'configs/_base_/quantization_*.py.')
    if not isinstance(request, ConfigDict):
        raise ValueError(f'quantization={request!r} is not supported; it must be a dict, such as '
                         'dict(weight=dict(num_bits=4)).')
    return read_request(request.to_dict())


def prepare_data(runner: Runner, spec: QuantSpec) -> CalibrationData:
    """Loads the calibration images and checks the request against model and data.

    Raises:
        ValueError: Too few images, images that are also evaluated on, a scope or an override
            that names nothing.
    """
    check_request(bare_model(runner.model), spec)
    return load_calibration_data(runner.cfg, spec.calibration,
                                 evaluated_files(runner.test_loop.dataloader.dataset),
                                 current_team())


def build_evaluation(runner: Runner) -> None:
    """Builds the evaluation set and its metrics, which a Runner would do later.

    Raises:
        ValueError: There is nothing to evaluate on, or it cannot be read.
    """
    missing = [name for name in ('test_dataloader', 'test_evaluator', 'test_cfg')
               if runner.cfg.get(name) is None]
    if missing:
        raise ValueError(f"The config has no '{missing[0]}': a model is evaluated by its "
                         'test_dataloader, test_evaluator and test_cfg; inherit a config that '
                         'has them.')
    with reading_data_set('evaluation set', runner.cfg.test_dataloader.dataset):
        _ = runner.test_loop


def quantize_runner(runner: Runner, spec: QuantSpec, data: CalibrationData,
                    journal: Journal | None = None,
                    target: MetricTarget | None = None) -> QuantizedRun:
    """Calibrates and quantizes ``runner.model`` in place; its weights must be loaded.

    Args:
        runner: Built from a config with the data sets.
        spec: The request.
        data: From ``prepare_data``.
        journal: Of the first process: keeps solved layers and gives those of an earlier run.
        target: How the metric is measured that ``budget.max_drop`` is about.

    Raises:
        ValueError: See ``calibration.calibrate`` and ``engine.calibration_data``.
    """
    model = bare_model(runner.model)
    float_bytes = tensor_bytes(model)
    runner.logger.info('mmbitsplit: calibrating on %s', f'{len(data.paths)} images'
                       if spec.calibration.num_images else 'the weights alone')
    first = runner.rank == 0
    with progress_bar(runner.logger, shown=first) as show, \
            layer_log(runner.work_dir, written=first) as write:

        def progress(step: Progress) -> None:
            show(step)
            write(step)

        def planned(plan: BitPlan) -> None:
            if first:
                write_plan(runner.work_dir, plan, runner.cfg)

        given = given_of(runner, data)
        if spec.budget is None:
            prepared, report = calibrate(
                model, data.batches, spec, run=_test_step, **given.options, progress=progress,
                journal=journal, planned=planned)
        else:
            # Layers of plans that are tried are shown, those of the chosen one are written.
            with keeping_choice(runner.work_dir, written=first):
                prepared, report = calibrate_within(
                    given, spec, target=target, journal=journal, callbacks=Callbacks(
                        show, planned, lambda line: runner.logger.info('mmbitsplit: %s', line)))
            if first:
                write_choice(runner.work_dir, report.budget)
            for place, layer in enumerate(report.layers):
                write(Progress('layers', place + 1, len(report.layers), layer))
    _log(runner, report)
    return QuantizedRun(prepared, report, data, float_bytes)


def given_of(runner: Runner, data: CalibrationData) -> Given:
    """What a calibration of a Runner's model is given beside the request."""
    model = bare_model(runner.model)
    return Given(model=model, batches=data.batches, run=_test_step,
                 replay_points=replay_points(model), labels=data.labels, team=current_team())


def _test_step(model: nn.Module, batch: Any) -> Any:
    return model.test_step(batch)


def bare_model(model: nn.Module) -> nn.Module:
    """Takes a distributed wrapper off."""
    return model.module if is_model_wrapper(model) else model


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and saved buffers."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _log(runner: Runner, report: QuantizationReport) -> None:
    layers, taken_over = report.layers, report.calibration['layers_taken_over']
    runner.logger.info(
        'mmbitsplit: %d layers quantized in %.1f s (%.1f s of it solving), %d kept in float, '
        'worst relative output error %.3g at %s', len(layers), report.seconds['calibration'],
        report.seconds['solve'], len(report.kept_float), *_worst(layers))
    if report.products:
        runner.logger.info('mmbitsplit: %d products of activations quantized, worst relative error '
                           '%.3g at %s', len(report.products), *_worst(report.products))
    runner.logger.info('mmbitsplit: %s', multiplications_text(
        report.multiplications, [vars(part) for part in report.kept_float]))
    if taken_over:
        runner.logger.info('mmbitsplit: %d of them were taken over from an interrupted run',
                           taken_over)
    for remainder in report.kept_float:
        runner.logger.warning('mmbitsplit: %s (%s) stays float: %s; %.2f %% of the weights%s',
                              remainder.name, remainder.kind, remainder.reason,
                              100 * remainder.share, '' if remainder.multiplications is None else
                              f', {100 * remainder.multiplications:.2f} % of the multiplications')
    for warning in report.warnings:
        runner.logger.warning('mmbitsplit: %s', warning)
    for selection in report.selections:
        runner.logger.warning(
            'mmbitsplit: %s picks by values of layers and feeds %s: the quantized model may pick '
            'otherwise, and layers from there on are then fitted to outputs of other things. '
            'Name it as a replay point: docs/own_detector.md', selection,
            ', '.join(selection.reaches))
    taken = [layer.name for layer in layers if layer.guard_taken]
    if taken:
        runner.logger.info('mmbitsplit: plain rounding was better on held-out positions and was '
                           'taken for %s', ', '.join(taken))


def _worst(layers: Sequence[Any]) -> tuple[float, str]:
    worst = max(layers, key=lambda layer: layer.error, default=None)
    return (0.0, 'no layer') if worst is None else (worst.error, worst.name)
