"""Lets tuning stages improve the whole model once all layers are solved, and reports it."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmbitsplit.calibration.solved_layers import Progress, SolvedLayers
from mmbitsplit.methods.tuning import TuningStage
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.solving.tuning import (
    InnerLoss,
    LearnedValues,
    OutputLoss,
    TunedModel,
    record_float,
    split_batches,
)
from mmbitsplit.structures import CalibrationSpec, summary


def tune(stages: Sequence[TuningStage], look: Watching, calibration: CalibrationSpec,
         solved: SolvedLayers, stopwatch: Stopwatch) -> list[dict[str, Any]]:
    """Runs stages one after the other; scales and biases of layers change in place.

    What the float model gives is recorded anew, as no method leaves all of it. The journal keeps
    nothing of a stage: a calibration that was interrupted in one starts it again from the layers,
    and ends in the same values.

    Args:
        stages: In order.
        look: What is known of the model, and its batches.
        calibration: Seed, and what no layer was solved on.
        solved: All layers; their reports are brought up to date.
        stopwatch: Told what it takes.

    Returns:
        What each stage says of itself.
    """
    outcomes = []
    for index, stage in enumerate(stages):
        started = time.perf_counter()
        with stopwatch('tuning'):
            outcome = _tune(stage, index, look, calibration, solved)
        outcomes.append({**outcome, 'seconds': time.perf_counter() - started})
    if any(outcome['kept'] != 'start' for outcome in outcomes):
        _update_reports(solved)
    return outcomes


def _tune(stage: TuningStage, index: int, look: Watching, calibration: CalibrationSpec,
          solved: SolvedLayers) -> dict[str, Any]:
    forwards, layers, seed = look.forwards, solved.prepared.layers, calibration.seed
    fit, held_out, unseen = split_batches(forwards.total, calibration, stage.holdout)
    raw = RawOutputs.of(forwards, look.flow, Tape())
    loss = OutputLoss(raw, stage.loss, seed)
    spreads = record_float(raw, layers, loss)
    # Who gives a quantized residual stream and who reads it have one scale.
    shared = {name for stream in solved.prepared.plan.streams
              for name in (stream.name, *stream.readers)}
    values = LearnedValues(layers, stage.learns, spreads, shared)
    model = TunedModel(
        raw, values, loss, fit, held_out, seed + index, InnerLoss(layers), stage.inner,
        lambda step, steps: solved.progress(Progress('tuning', step, steps)))
    outcome = stage.tune(model)
    changed = values.changed_codes()
    values.end()
    reached = set().union(*forwards.team.gather(model.reached))
    unreached = [name for name in layers if name not in reached]
    return {'type': type(stage).__name__, **outcome,
            'loss': loss.kind, 'options': asdict(stage), 'learned': values.counts(),
            'changed_codes': changed,
            'fit_batches': len(fit), 'held_out_batches': len(held_out), 'unseen': unseen,
            **({'unreached': unreached} if reached and unreached else {})}


def _update_reports(solved: SolvedLayers) -> None:
    for report in solved.reports:
        layer = solved.prepared.layers[report.name]
        report.weight_scale = summary(layer.weight_scale)
        if layer.qparams is not None:
            report.activation_scale = summary(layer.qparams.scale)
        report.notes.append('scales and biases were tuned with those of other layers afterwards; '
                            'the error is that before')
