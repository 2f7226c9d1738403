"""What each layer loses the model at each width it may have: sensitivity, measured.

All layers are solved at every width on what the float model gives them (``width_solutions``) and
kept in a bank. The base model has all of them at the widest; the sensitivity of a layer at a width
is the loss of the base model with that one layer so, less the loss of the base model. One table
serves all budgets, and the bank gives the loss of a whole plan for one forward of the batches.

Source: Hubara et al., *Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming*, 2020, section 3.3, and its code. Differs from source: no labels are needed,
activations may have widths of their own, the loss is that on batches that no layer was solved on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.methods import build_method
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.call_counts import reached_by, totals
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forwards import Forwards, check_not_empty
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import ReplayPoint, Tape
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import as_called, state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import prepare_as_requested
from mmbitsplit.planning.request_plan import check_request, layers_to_find, make_plan
from mmbitsplit.planning.width_bank import WidthBank
from mmbitsplit.planning.width_choices import width_choices, with_widths
from mmbitsplit.planning.width_losses import (
    BaseCalls,
    PlanLosses,
    batches_to_judge,
    mean,
    shared_bytes,
)
from mmbitsplit.planning.width_solutions import WidthSolver
from mmbitsplit.solving.streams import settle_streams
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import QuantSpec, Widths, WidthTable

LEAST = 1e-6  # of a sensitivity, in parts of the largest in the table


@dataclass(frozen=True)
class WidthProgress:
    """One step, for whoever shows it.

    Args:
        stage: ``'gather'`` (batches through the float model, again for each pass), ``'solve'``
            (layers solved at all widths) or ``'measure'`` (layers measured at all widths).
        step, steps: Of the stage.
        layer: The layer that is done; empty for ``'gather'``.
    """

    stage: str
    step: int
    steps: int
    layer: str = ''


class WidthSensitivity:
    """A float model whose layers are solved at every width of a budget; for use in ``with``.

    Afterwards, and after an error, the model is the float model that it was, bit for bit.

    Costs, in forwards of a batch: three to watch and compare, one to count calls, one for each
    pass over the images that gathers positions (one where 1 GB holds those of all layers), two for
    each batch to judge on, and one for each of these, layer and narrower width, of which the part
    before the layer is handed out from memory. ``loss_of`` costs one for each batch to judge on.

    Args:
        model: Float model.
        batches: Calibration batches; with a team this process's share.
        spec: The request with its budget: widths, ``sensitivity``, ``loss``, ``method``.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: See ``calibrate``.
        labels: What each batch is called in error messages.
        team: The processes that work together; this one alone when not given.
        progress: Told every step.

    Attributes:
        choices: Widths that each planned layer may have.
        base: The widest of them.
        measured, noise: See ``measure``.
        unseen: Whether the batches that are judged on are such that no layer was solved on.

    Raises:
        ValueError: See ``calibrate``; or the loss is none of this model.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
                 run: Callable[[nn.Module, Any], Any],
                 replay_points: Sequence[ReplayPoint] = (), labels: Sequence[str] | None = None,
                 team: Team | None = None,
                 progress: Callable[[WidthProgress], None] = lambda step: None):
        assert spec.budget is not None, 'the request has no budget'
        team = team or Team()
        check_not_empty(team.total(len(batches)))
        self.spec, self.budget, self.progress = spec, spec.budget, progress
        self.method = build_method(self.budget.method or spec.method)
        self._given = (as_written(model), batches, run, replay_points, labels, team)
        check_request(self._given[0], spec)
        self.measured, self.noise = WidthTable(), {}
        self._stack = ExitStack()

    def __enter__(self) -> 'WidthSensitivity':
        model, batches, run, replay_points, labels, team = self._given
        with ExitStack() as stack:
            stack.enter_context(uncompiled(model))
            stack.callback(ModelState(model).put_back)
            with self._computing() as caller:
                self.forwards = Forwards.of(
                    model.eval(), batches, as_called(run, caller),
                    seed=self.spec.calibration.seed, replay_points=replay_points, labels=labels,
                    team=team)
                self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def measure(self, monotone: bool = False) -> WidthTable:
        """Returns the sensitivity of every layer at every width it may have.

        0 for the base model's own; else at least ``LEAST`` of the largest of all, for a layer
        gains by fewer bits by chance alone. ``measured`` has the losses as they are, ``noise`` the
        widths at which a layer loses more than at fewer bits.

        Args:
            monotone: Whether such layers have at fewer bits what they lose at more: the better
                figure is then taken for luck. Sums are larger, what is chosen is mostly the same.
        """
        with self._computing():
            losses = {name: {widths: mean(self._measured(name, widths)) for widths in row}
                      for name, row in self._told('measure', self.choices.items())}
        self.measured = WidthTable(losses)
        self.noise = noise_in(self.measured, self.base)
        return sensitivities(self.measured, self.base, monotone)

    def loss_of(self, plan: Mapping[str, Widths]) -> float:
        """Loss of a whole plan, all layers as they were solved alone.

        Args:
            plan: Widths by layer; layers that it leaves out are as in the base model.

        Raises:
            ValueError: It names a layer or a width that is none of the choices.
        """
        return mean(self.losses_of(plan))

    def losses_of(self, plan: Mapping[str, Widths]) -> list[float]:
        """Loss of a whole plan on each batch that is judged on; see ``loss_of``."""
        with self._computing():
            return self.losses.of(plan)

    @property
    def base_loss(self) -> float:
        """Of the base model."""
        return mean(self.losses.base)

    def _begin(self) -> None:
        spec = self.spec
        look = Watching(self.forwards, layers_to_find(self.forwards.model, spec), count=True)
        self.choices = width_choices(
            lambda asked: make_plan(self.forwards.model, look.flow, asked), spec)
        self.base = {name: max(row, key=lambda one: (one.weight, one.activation or 0))
                     for name, row in self.choices.items()}
        prepared = prepare_as_requested(look, with_widths(spec, self.base))
        settle_streams(prepared, self.forwards, spec.calibration.seed)
        self.prepared, self.look = prepared, look
        self.bank = WidthBank(prepared, self.base)
        self._solve()
        raw = RawOutputs.of(self.forwards, look.flow, Tape())
        judged, self.unseen = batches_to_judge(self.forwards.total, spec.calibration)
        self.losses = PlanLosses(
            raw, self.bank,
            OutputLoss(raw, self.budget.loss, spec.calibration.seed, 'quantization.budget'),
            judged, BaseCalls(prepared.layers, shared_bytes(spec.calibration)))
        self.losses.begin()

    def _solve(self) -> None:
        counts, layers = self.look.counts, self.prepared.layers
        sampler = Sampler(replace(self.spec.calibration, sampling='even'), self.forwards.total,
                          {name: self.look.flow.calls[name] for name in layers},
                          totals(counts, layers), reached_by(counts, layers))
        solver = WidthSolver(self.prepared, self.look, self.method, self.choices, self.base,
                             sampler)

        def gathered(step: int, steps: int) -> None:
            self.progress(WidthProgress('gather', step, steps))
        for step, (name, row) in enumerate(solver.solve({}, gathered)):
            for widths, banked in row.items():
                self.bank.add(name, widths, banked)
            self.progress(WidthProgress('solve', step + 1, len(layers), name))

    def _measured(self, name: str, widths: Widths) -> list[float]:
        return self.losses.base if widths == self.base[name] else self.losses.of({name: widths})

    def _told(self, stage: str, items: Any) -> Iterator[Any]:
        items = list(items)
        for step, item in enumerate(items):
            yield item
            self.progress(WidthProgress(stage, step + 1, len(items), item[0]))

    @contextmanager
    def _computing(self) -> Iterator[Any]:
        """Around what computes: as in a calibration, whatever modes the caller is in."""
        with full_float32(), state_of_its_own() as caller, torch.no_grad():
            yield caller


def sensitivities(losses: WidthTable, base: Mapping[str, Widths], monotone: bool = False,
                  ) -> WidthTable:
    """Losses less those of the base model; see ``WidthSensitivity.measure``.

    Args:
        losses: By layer and widths.
        base: Widths of the base model.
        monotone: Whether a width loses at least what more bits lose.
    """
    risen = {name: {widths: loss - row[base[name]] for widths, loss in row.items()}
             for name, row in losses.layers.items()}
    least = LEAST * max([abs(value) for row in risen.values() for value in row.values()],
                        default=0.0)
    return WidthTable({name: {
        widths: 0.0 if widths == base[name] else max(least, *(
            row[other] for other in row if other == widths or monotone and covers(other, widths)))
        for widths in row} for name, row in risen.items()})


def noise_in(losses: WidthTable, base: Mapping[str, Widths]) -> dict[str, list[Widths]]:
    """Widths at which layers lose more than at some with fewer bits, by layer."""
    found = {name: [widths for widths in row if any(
        loss < row[widths] for other, loss in row.items()
        if other != widths and covers(widths, other))] for name, row in losses.layers.items()}
    return {name: row for name, row in found.items() if row}


def covers(one: Widths, other: Widths) -> bool:
    """Whether it has at least the bits of another, of both kinds."""
    return one.weight >= other.weight and (one.activation or 0) >= (other.activation or 0)
