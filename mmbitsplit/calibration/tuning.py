"""Lets tuning stages improve the whole model once all layers are solved, and reports it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from mmbitsplit.calibration.solved_layers import Progress, SolvedLayers
from mmbitsplit.methods.tuning import TuningStage
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.batches import holds_images, images_in
from mmbitsplit.passes.call_counts import CallCounts
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.solving.tuning import (
    InnerLoss,
    LearnedValues,
    OutputLoss,
    RenormalisedModel,
    TunedModel,
    as_float,
    norms_of_float,
    record_float,
    split_batches,
    spreads_of,
)
from mmbitsplit.structures import CalibrationSpec, summary

INNER_OF_SCORES = 10.0  # see ``OutputTuning.inner``


def tune(stages: Sequence[TuningStage], look: Watching, calibration: CalibrationSpec,
         solved: SolvedLayers, stopwatch: Stopwatch, no_tuning: str = '',
         ) -> list[dict[str, Any]]:
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
        no_tuning: Why no stage is to be run, empty where they are; all are ``if_possible`` then.

    Returns:
        What each stage says of itself.
    """
    outcomes = []
    for index, stage in enumerate(stages):
        started = time.perf_counter()
        with stopwatch('tuning'):
            outcome = _tune_if_possible(stage, index, look, calibration, solved, no_tuning) \
                if stage.if_possible else _tune(stage, index, look, calibration, solved)
        outcomes.append({**outcome, 'seconds': time.perf_counter() - started})
    if any(outcome['kept'] != 'start' for outcome in outcomes):
        update_reports(solved)
    return outcomes


def check_norms(stages: Sequence[TuningStage], prepared: PreparedModel) -> None:
    """Raises ``ValueError`` for a stage that rebuilds folded norms of a model that has none."""
    for index, stage in enumerate(stages):
        if getattr(stage, 'target', None) == 'norm' and not prepared.norms:
            name = type(stage).__name__
            raise ValueError(
                f'quantization.tuning[{index}]: {name} renews the batch norms that were folded '
                'into layers, and none was: the model has no batch norm behind a quantized layer, '
                'or its weights came with the norms folded. Give it '
                "target='float', which takes what the float model's layers give on the calibration "
                f'images instead, or leave {name} out.')


def _tune_if_possible(stage: TuningStage, index: int, look: Watching,
                      calibration: CalibrationSpec, solved: SolvedLayers, no_tuning: str,
                      ) -> dict[str, Any]:
    reason = no_tuning or why_not(look, solved)
    # What one of several processes refuses now, others wait for: then the run ends.
    if not reason and look.forwards.team.size > 1:
        return _tune(stage, index, look, calibration, solved)
    if not reason:
        # One process alone may go on after torch's errors too: a later batch that takes another
        # path (``why_not`` tried the first), or memory that was not there. All that moved has been
        # taken back. Programming errors have other types, and end the run.
        try:
            return _tune(stage, index, look, calibration, solved)
        except ValueError as error:
            reason = str(error).removeprefix('quantization.tuning: ')
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    return {'type': type(stage).__name__, 'kept': 'start', 'left_out': reason,
            'options': asdict(stage)}


def why_not(look: Watching, solved: SolvedLayers) -> str:
    """Why the model cannot be tuned; empty where it can. The same in every process.

    Each process tries a forward with gradients on its first batch, and all hear of the first
    that fails.
    """
    forwards, layers = look.forwards, solved.prepared.layers
    if forwards.total < 2:
        return 'there is one batch alone, and none to judge on'
    values = LearnedValues(layers, ('scales',), {
        name: torch.ones(layer.geometry.out_channels) for name, layer in layers.items()})
    reason = ''
    for number in list(forwards.batches)[:1]:
        raw = RawOutputs.of(forwards, look.flow, Tape())
        try:
            with as_float(layers, forwards.model):
                wanted = raw.record(number)
            with values.recorded() as leaves:
                found = raw.replay(number, len(wanted), leaves)
                reason = _unlike(wanted, found)
                if not reason:
                    torch.autograd.grad([x for _, x in found if x.requires_grad], leaves, [
                        torch.ones_like(x) for _, x in found if x.requires_grad],
                        allow_unused=True)
        except RuntimeError as error:  # torch's: an operation has no gradient, say
            reason = str(error).splitlines()[0]
    return next((one for one in forwards.team.gather(reason) if one), '')


def _unlike(wanted: Sequence[RawOutput], found: Sequence[RawOutput]) -> str:
    """Why outputs of the quantized model cannot be brought nearer to the float model's."""
    if [(name, x.shape) for name, x in wanted] != [(name, x.shape) for name, x in found]:
        return 'a step picks rows by values of layers, and no replay point covers it'
    return '' if any(x.requires_grad for _, x in found) else \
        'no gradient reaches the raw outputs'


def _tune(stage: TuningStage, index: int, look: Watching, calibration: CalibrationSpec,
          solved: SolvedLayers) -> dict[str, Any]:
    seed, total = calibration.seed, look.forwards.total
    fit, held_out, unseen = split_batches(total, calibration, stage.holdout)
    as_they_are = RawOutputs.of(look.forwards, look.flow, Tape())
    mirrored = _mirrors(stage, look, OutputLoss(as_they_are, stage.loss, seed))
    forwards, parts = look.forwards.divided(stage.images)
    fit, held_out = ([one for batch in some for one in parts[batch]] for some in (fit, held_out))
    total = forwards.total
    forwards = forwards.with_mirrored(fit) if mirrored else forwards
    raw = RawOutputs.of(forwards, look.flow, Tape())
    loss = OutputLoss(raw, stage.loss, seed)

    def progress(step: int, steps: int) -> None:
        solved.progress(Progress('tuning', step, steps))

    if stage.works_on == 'norms':
        outcome = _renormalise(stage, look, solved, raw, loss, fit, held_out, progress)
    else:
        learned_from = [*fit, *(number + total for number in fit if mirrored)]
        outcome = _learn(stage, solved, raw, loss, learned_from, held_out, seed + index, mirrored,
                         progress)
    return {'type': type(stage).__name__, **outcome, 'loss': loss.kind, 'options': asdict(stage),
            'fit_batches': len(fit), 'held_out_batches': len(held_out), 'unseen': unseen}


def _learn(stage: TuningStage, solved: SolvedLayers, raw: RawOutputs, loss: OutputLoss,
           fit: Sequence[int], held_out: Sequence[int], seed: int, mirrored: bool,
           progress: Callable[[int, int], None]) -> dict[str, Any]:
    """A stage that moves values by gradients."""
    layers, forwards = solved.prepared.layers, raw.forwards
    images = _most_images(forwards)
    spreads = spreads_of(layers, record_float(raw, layers, loss))
    if stage.real_biases:
        spreads = {name: torch.ones_like(spread) for name, spread in spreads.items()}
    inner = (INNER_OF_SCORES if loss.kind == 'kl' else 0.0) if stage.inner is None else stage.inner
    # Who gives a quantized residual stream and who reads it have one scale.
    shared = {name for stream in solved.prepared.plan.streams
              for name in (stream.name, *stream.readers)}
    tied = [plan.name for plan in solved.prepared.plan.layers if plan.codes_of]
    values = LearnedValues(layers, stage.learns, spreads, shared,
                           tied if stage.last_layers else {*tied, *raw.modules})
    model = TunedModel(raw, values, loss, fit, held_out, seed, images, mirrored, InnerLoss(layers),
                       inner, progress)
    try:
        outcome = stage.tune(model)
    except (ValueError, RuntimeError):
        values.write(torch.zeros(values.size, dtype=torch.float64))
        values.end()
        raise
    changed = values.changed_codes()
    values.end()
    reached = set().union(*forwards.team.gather(model.reached))
    unreached = [part.name for part in values.parts if part.size and part.name not in reached]
    return {**outcome, 'inner': inner, 'mirrored': mirrored, 'learned': values.counts(),
            'changed_codes': changed,
            **({'unreached': unreached} if reached and unreached else {})}


def _renormalise(stage: TuningStage, look: Watching, solved: SolvedLayers, raw: RawOutputs,
                 loss: OutputLoss, fit: Sequence[int], held_out: Sequence[int],
                 progress: Callable[[int, int], None]) -> dict[str, Any]:
    """A stage that renews norms behind layers."""
    prepared, calls = solved.prepared, CallCounts()
    used = [*fit, *(held_out if stage.batches == 'all' else ())]
    moments = record_float(raw, prepared.layers, loss,
                           used if stage.target == 'float' else (), calls)
    norms = norms_of_float(moments) if stage.target == 'float' else prepared.norms
    tied = {plan.name for plan in prepared.plan.layers if plan.codes_of}
    norms = {name: norms[name] for name in prepared.layers if name in norms and name not in tied}
    model = RenormalisedModel(raw, prepared, look.flow, loss, norms, calls, fit, held_out, progress)
    outcome = stage.tune(model)
    channels = sum(prepared.layers[name].geometry.out_channels for name in norms)
    return {**outcome, 'learned': {'scales': channels, 'biases': channels},
            'left_alone': len(prepared.layers) - outcome['layers']}


def _most_images(forwards: Forwards) -> int:
    """In a batch of any process."""
    return max(forwards.team.gather(max(map(images_in, forwards.batches.values()), default=1)))


def _mirrors(stage: TuningStage, look: Watching, loss: OutputLoss) -> bool:
    """Whether batches are seen in a mirror, too."""
    if stage.mirrored != 'auto':
        return stage.mirrored
    if loss.of_scores:
        return False
    return all(look.forwards.team.gather(all(map(holds_images, look.forwards.batches.values()))))


def update_reports(solved: SolvedLayers) -> None:
    for report in solved.reports:
        layer = solved.prepared.layers[report.name]
        report.weight_scale = summary(layer.weight_scale)
        if layer.qparams is not None:
            report.activation_scale = summary(layer.qparams.scale)
        report.notes.append('its numbers were tuned with those of other layers afterwards; the '
                            'error is that before')
