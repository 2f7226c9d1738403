"""Quantizes any torch module."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mmbitsplit.apis.batches import ModelCall, arrays_to_tensors, read_batches
from mmbitsplit.apis.sample_words import are_images, reword_report, reworded
from mmbitsplit.calibration import Progress, ReplayPoint, calibrate, read_request
from mmbitsplit.calibration.budget import Callbacks, calibrate_within
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.calibration.plan_trials import MetricTarget
from mmbitsplit.models import describe, note_surgery
from mmbitsplit.structures import BitPlan, PlanSpec, QuantizationReport, QuantSpec, read_plan


def quantize_model(model: nn.Module, batches: Iterable[Any],
                   spec: QuantSpec | Mapping[str, Any] | None = None, *,
                   run: Callable[[nn.Module, Any], Any] | None = None,
                   replay_points: Sequence[ReplayPoint] = (),
                   labels: Sequence[str] | None = None,
                   progress: Callable[[Progress], None] = lambda step: None,
                   plan: PlanSpec | BitPlan | Mapping[str, Any] | str | Path | None = None,
                   evaluate: Callable[[nn.Module], float] | None = None,
                   ) -> QuantizationReport:
    """Quantizes a model in place from a few batches of its inputs.

    Args:
        model: Any float model; no tracing, so any control flow will do. After an error or
            Ctrl-C it is as it was.
        batches: Inputs, each a tensor, an array, or a tuple or dict of arguments of the model; a
            list of them, a DataLoader or a generator. All are kept in memory. A model that takes
            one argument gets the first of a pair such as (images, labels).
        spec: The ``quantization`` dict of a config, whose method fills what it leaves open
            (``calibration.read_request``); or a request that says everything. Defaults to W4A8.
        run: How to run the model on a batch, when calling it is not enough.
        replay_points: Calls whose result depends on the data in jumps (box decoding): recorded
            in the float pass and replayed in the quantized one.
        labels: What each batch is called in error messages.
        progress: Told every step.
        plan: Widths layer by layer, which win over those of ``spec``: the ``plan`` of an earlier
            report, a ``plan.json`` or its path, edited or not (``docs/files.md``).
        evaluate: The metric of a model, in points, more is better; for ``budget.max_drop``. Called
            with the float model first.

    Returns:
        What was done to each layer, times and memory.

    Raises:
        ValueError: Batches that the model cannot be called with, and whatever
            ``calibration.calibrate`` refuses.
    """
    if not isinstance(spec, QuantSpec):  # its method may look at the plan
        if isinstance(spec, Mapping) or spec is None:
            spec = {**(spec or {}), **({} if plan is None else {'plan': plan})}
        spec = read_request(spec)
    elif plan is not None:
        spec = replace(spec, plan=read_plan(plan))
    if spec.evaluate_widths:
        raise ValueError('evaluate_widths=True is not supported by quantize_model, which evaluates '
                         'nothing; leave it out, and measure after set_bits(model, 3), say.')
    batches, call = read_batches(batches), ModelCall()
    if run is None:
        batches = arrays_to_tensors(batches, model)
    try:
        if spec.budget is None:
            prepared, report = calibrate(model, batches, spec, run=run or call,
                                  replay_points=replay_points, labels=labels, progress=progress)
        else:
            given = Given(model=model, batches=batches, run=run or call,
                          replay_points=replay_points, labels=labels)
            prepared, report = calibrate_within(
                given, spec, target=None if evaluate is None else _target(model, evaluate),
                callbacks=Callbacks(progress=progress))
    except Exception as error:
        refusal = call.refusal(model)
        if refusal is None:
            if not are_images(batches):
                reworded(error)
            raise
        raise ValueError(refusal) from error
    note_surgery(model, describe(prepared))  # for save_quantized
    if not are_images(batches):
        reword_report(report)
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return report


def _target(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> MetricTarget:
    """A metric in points that is a number of the model."""
    wanted = float(evaluate(model.eval()))
    return MetricTarget(lambda: {'metric': float(evaluate(model))},
                        lambda metrics: wanted - metrics['metric'])
