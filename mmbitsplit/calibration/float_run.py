"""The float pass with what goes with it: positions, recorded decisions, the model's loss."""

from collections.abc import Callable, Container
from contextlib import nullcontext
from dataclasses import dataclass, field

from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.call_counts import reached_by, totals
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.float_pass import FloatRecord, float_pass
from mmbitsplit.passes.importance import Importance
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.row_masks import row_masks
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.solving.model_loss import ModelLoss
from mmbitsplit.structures import CalibrationSpec


@dataclass
class FloatRun:
    """What a float pass leaves behind.

    Args:
        sampler: Positions that were taken.
        loss: For a method that needs the model's loss, with the float model's outputs.
        record: Targets and counts.
        tape: Decisions to replay.
        importance: Where somebody asked for it.
    """

    sampler: Sampler
    loss: ModelLoss | None
    record: FloatRecord = field(default_factory=FloatRecord)
    tape: Tape = field(default_factory=Tape)
    importance: Importance = field(default_factory=Importance)


def prepare_run(prepared: PreparedModel, look: Watching, calibration: CalibrationSpec,
                method: Method, stopwatch: Stopwatch) -> FloatRun:
    """Everything that a float pass needs, before it is run."""
    tape = Tape()
    loss = ModelLoss(look.forwards, look.flow, tape, method.loss, method.loss_batches) \
        if method.refines else None
    sampler = Sampler(calibration, look.forwards.total,
                      {name: look.flow.calls[name] for name in prepared.sites},
                      totals(look.counts, prepared.sites),
                      reached_by(look.counts, prepared.sites), stopwatch,
                      products={plan.name: plan for plan in prepared.plan.products},
                      masks=row_masks(look.forwards.batches, calibration.row_mask))
    return FloatRun(sampler, loss, tape=tape)


def run_float(run: FloatRun, prepared: PreparedModel, look: Watching, done: Container[str],
              stopwatch: Stopwatch, progress: Callable[[int, int], None]) -> FloatRun:
    """Runs the float pass.

    Args:
        run: What it needs; is given what it leaves behind.
        prepared: The model, its layers still in float.
        look: What is known of it, and its batches.
        done: Layers solved already.
        stopwatch: Told what the pass takes.
        progress: Told (batches done, batches in all).
    """
    with stopwatch('float_pass'), look.forwards.recording(run.tape), \
            run.loss.recording() if run.loss else nullcontext():
        run.record = float_pass(prepared, look.forwards, run.sampler, done, progress)
    return run
