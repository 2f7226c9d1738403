"""How far a model with a plan is from the float model, on images to judge on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import ReplayPoint, Tape
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import in_a_state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import open_as_requested, prepare_as_requested
from mmbitsplit.planning.request_plan import layers_to_find
from mmbitsplit.planning.width_losses import batches_to_judge
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import QuantSpec


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a calibration is given beside the request; see ``calibrate``.

    Args:
        model: Float model.
        batches: This process's.
        run: Runs the model on a batch.
        replay_points: Calls whose results are recorded and replayed.
        labels: What each batch is called in error messages.
        team: The processes that calibrate together.
    """

    model: nn.Module
    batches: Sequence[Any]
    run: Callable[[nn.Module, Any], Any]
    replay_points: Sequence[ReplayPoint] = ()
    labels: Sequence[str] | None = None
    team: Team | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``calibrate`` and ``Forwards.of`` but ``run``."""
        return {'replay_points': self.replay_points, 'labels': self.labels, 'team': self.team}


@dataclass(frozen=True)
class PlanLoss:
    """The loss of quantized forms of one model, without labels; made by ``PlanLoss.of``.

    Raw outputs are compared with the float model's, decisions are replayed: see ``OutputLoss``.

    Args:
        loss: With what the float model gave.
        batches: That are looked at, of all processes.
        unseen: Whether no layer is solved on them.
        names: Of the last layers.
        tape: Decisions of the float model.
        seed: Of the calibration.
    """

    loss: OutputLoss
    batches: tuple[int, ...]
    unseen: bool
    names: tuple[str, ...]
    tape: Tape
    seed: int

    @classmethod
    def of(cls, given: Given, spec: QuantSpec, kind: str = 'auto') -> 'PlanLoss':
        """Runs the float model on the batches; it is as it was afterwards.

        Args:
            given: Model and batches.
            spec: The request; of its calibration, ``holdout`` says which batches
                (``batches_to_judge``).
            kind: See ``OutputLoss``.
        """
        before = ModelState(given.model)
        try:
            with uncompiled(given.model):
                return _record(as_written(given.model), given.batches, spec, kind, run=given.run,
                               **given.options)
        finally:
            before.put_back()

    def __call__(self, given: Given) -> float:
        """The loss of the model as it is now; every process of the team returns the same."""
        with uncompiled(given.model):
            return _compare(self, as_written(given.model), given.batches, run=given.run,
                            **given.options)


@full_float32()
@in_a_state_of_its_own
def _record(model: nn.Module, batches: Sequence[Any], spec: QuantSpec, kind: str, *,
            run: Callable[[nn.Module, Any], Any], **options: Any) -> PlanLoss:
    seed = spec.calibration.seed
    forwards = open_as_requested(
        Forwards.of(model.eval(), batches, run, seed=seed, **options), spec)
    look = Watching(forwards, layers_to_find(model, spec))
    # Batch norms behind last layers are folded first, as they are in all quantized forms.
    prepare_as_requested(look, spec)
    raw = RawOutputs.of(forwards, look.flow, Tape())
    loss = OutputLoss(raw, kind, seed, 'quantization.budget')
    chosen, unseen = batches_to_judge(forwards.total, spec.calibration)
    for number in chosen:
        if number in forwards.batches:
            loss.add(number, raw.record(number))
    loss.settle()
    return PlanLoss(loss, tuple(chosen), unseen, tuple(raw.modules), raw.tape, seed)


@full_float32()
@in_a_state_of_its_own
def _compare(plan_loss: PlanLoss, model: nn.Module, batches: Sequence[Any], *,
             run: Callable[[nn.Module, Any], Any], **options: Any) -> float:
    forwards = Forwards.of(model, batches, run, seed=plan_loss.seed, **options)
    raw = RawOutputs(forwards, {name: model.get_submodule(name) for name in plan_loss.names},
                     plan_loss.tape)
    found = torch.zeros(len(plan_loss.batches), dtype=torch.float64)
    for place, number in enumerate(plan_loss.batches):
        if number in forwards.batches:
            wanted = plan_loss.loss.wanted[number]
            with torch.no_grad():
                found[place] = float(plan_loss.loss(number, raw.replay(number, len(wanted))))
    forwards.team.add_(found)
    return float(found.mean())
