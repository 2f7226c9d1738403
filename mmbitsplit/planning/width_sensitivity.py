"""What each layer loses the model at each width it may have: sensitivity, measured.

All layers are solved at every width on what the float model gives them (``width_solutions``) and
kept in a bank. The base model has all of them at the widest; the sensitivity of a layer at a width
is the loss of the base model with that one layer so, less the loss of the base model. One table
serves all budgets, and the bank gives the loss of a whole plan for one forward of the batches.

Source: Hubara et al., *Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming*, 2020, section 3.3, and its code. Differs from source: no labels are needed,
activations may have widths of their own, the loss is that on batches that no layer was solved on.
Where the request gives inputs fewer than 8 bits and leaves them to no choice, layers are measured
with inputs of 8 bits all over the model: else rounding of inputs hides what weights lose (on
ResNet-20 with inputs of 4 bits, 11 of 18 layers seemed to lose by more bits). Plans are as
requested.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.methods import build_method
from mmbitsplit.models import last_layers
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.models.surgery.prepare import planned_geometries
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.call_counts import reached_by, totals
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forwards import Forwards, check_not_empty
from mmbitsplit.passes.free_memory import memory_budget
from mmbitsplit.passes.importance import ImportancePass
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import ReplayPoint, Tape
from mmbitsplit.passes.row_masks import row_masks
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import as_called, state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.request_plan import check_request
from mmbitsplit.planning.units import find_units
from mmbitsplit.planning.watched_widths import WatchedWidths
from mmbitsplit.planning.width_bank import WidthBank
from mmbitsplit.planning.width_journal import WidthJournal
from mmbitsplit.planning.width_losses import (
    BaseCalls,
    PlanLosses,
    batches_to_judge,
    mean,
    shared_bytes,
)
from mmbitsplit.planning.width_memory import estimate
from mmbitsplit.planning.width_solutions import WidthSolver, row_bytes
from mmbitsplit.planning.width_tables import noise_in, sensitivities
from mmbitsplit.planning.width_units import UnitLearner
from mmbitsplit.solving.block_loss import BlockLoss
from mmbitsplit.solving.label_loss import LabelLoss, class_labels
from mmbitsplit.solving.model_loss import usual_kind
from mmbitsplit.solving.statistics import check_large_layers
from mmbitsplit.solving.streams import settle_streams
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import BitPlan, QuantSpec, Widths, WidthTable

MEASURED_BITS = 8  # of inputs that are not chosen, while layers are measured


@dataclass(frozen=True)
class WidthProgress:
    """One step, for whoever shows it.

    Args:
        stage: ``'gather'`` (batches through the float model, again for each pass), ``'solve'``
            (layers solved at all widths), ``'importance'`` (batches forward and backward, for
            ``sensitivity='fisher'``) or ``'measure'`` (layers measured at all widths).
        step, steps: Of the stage.
        layer: The layer that is done, in ``'solve'`` and ``'measure'``.
        seconds_left: Of the stage, guessed from what is done.
    """

    stage: str
    step: int
    steps: int
    layer: str = ''
    seconds_left: float | None = None


class WidthSensitivity:
    """A float model whose layers are solved at every width of a budget; for use in ``with``.

    Afterwards, and after an error, the model is the float model that it was, bit for bit.

    Costs, in forwards of a batch: three to watch and compare, one to count calls, one for each pass
    over the images that gathers positions (one where 1 GB holds those of all layers).
    ``'measured'``: two more for each batch to judge on, and one for each of these, layer and
    narrower width, of which the part before the layer is handed out from memory. ``'fisher'``: one
    more for each batch, and three backwards. ``'error'``: none. ``loss_of`` costs one for each
    batch to judge on, and two the first time. Layers whose inputs have fewer than 8 bits by request
    alone are solved twice at each width, to be measured with 8. Held in memory: the bank
    (``WidthBank.bytes``), 1 GB of positions, then 1 GB of outputs; ``calibration.memory_budget``
    says less.

    Methods that solve units (AdaQuant, BRECQ) learn each layer by itself, on what the float model
    gives it. Methods that refine the whole model (``LAPQ``) solve layers here and do no more.

    Args:
        model: Float model.
        batches: Calibration batches; with a team this process's share.
        spec: The request with its budget: widths, ``sensitivity``, ``loss``, ``method``.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: See ``calibrate``.
        labels: What each batch is called in error messages.
        classes: Gives the class of each image of a batch, (rows,) whole numbers, or ``None`` where
            it has none; for ``loss='cross_entropy'``.
        team: The processes that work together; this one alone when not given.
        journal: What has been solved and measured is taken over from it, and kept there; of a
            team the first process's counts.
        progress: Told every step.

    Attributes:
        choices: Widths that each planned layer may have.
        base: The widest of them.
        watched: What both were found by.
        measured, noise: See ``measure``.
        forwards_run: Forwards of a batch so far that this process made to measure.

    Raises:
        ValueError: See ``calibrate``; or the loss is none of this model.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
                 run: Callable[[nn.Module, Any], Any],
                 replay_points: Sequence[ReplayPoint] = (), labels: Sequence[str] | None = None,
                 classes: Callable[[Any], Tensor | None] = class_labels,
                 team: Team | None = None, journal: WidthJournal | None = None,
                 progress: Callable[[WidthProgress], None] = lambda step: None):
        assert spec.budget is not None, 'the request has no budget'
        team = team or Team()
        check_not_empty(team.total(len(batches)))
        self.spec, self.budget, self.progress = spec, spec.budget, progress
        self.method = build_method(self.budget.method or spec.method)
        self.classes, self.journal = classes, journal or WidthJournal()
        self._given = (as_written(model), batches, run, replay_points, labels, team)
        check_request(self._given[0], spec)
        self.measured, self.noise = WidthTable(), {}
        self._losses: PlanLosses | None = None
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
            losses = {'measured': self._model_losses, 'fisher': self._weighted_errors,
                      'error': self._errors}[self.budget.sensitivity]()
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
            return self.losses.of({**self.base, **plan})

    @property
    def base_loss(self) -> float:
        """Of the base model, its inputs as requested."""
        return self.loss_of({})

    @property
    def unseen(self) -> bool:
        """Whether batches are judged on that no layer was solved on."""
        return batches_to_judge(self.forwards.total, self.spec.calibration)[1]

    @property
    def forwards_run(self) -> int:
        """See the class."""
        return 0 if self._losses is None else self._losses.forwards

    @property
    def losses(self) -> PlanLosses:
        """Losses of plans; the float model is run when first asked for."""
        self._record()
        return self._losses

    def _record(self) -> None:
        if self._losses is None:
            loss = self._loss()
            losses = PlanLosses(
                loss.raw, self.bank, loss,
                batches_to_judge(self.forwards.total, self.spec.calibration)[0],
                BaseCalls(self.prepared.layers, shared_bytes(self.spec.calibration)))
            losses.record()
            self._losses = losses

    def _loss(self) -> OutputLoss | LabelLoss | BlockLoss:
        kind, look, plan = self.budget.loss, self.look, self.prepared.plan
        if kind == 'block_kl':
            units = find_units(look.flow, plan, overrides=self.spec.overrides, counts=look.counts)
            return BlockLoss(
                RawOutputs(self.forwards, {unit.name: self.forwards.model.get_submodule(
                    unit.modules[-1]) for unit in units}, Tape()),
                {unit.name: self.prepared.layers[unit.layers[-1]].geometry for unit in units})
        raw = RawOutputs.of(self.forwards, look.flow, Tape())
        return LabelLoss(raw, self.classes) if kind == 'cross_entropy' else OutputLoss(
            raw, kind, self.spec.calibration.seed, 'quantization.budget')

    def _begin(self) -> None:
        spec = self.spec
        self.watched = watched = WatchedWidths.of(self.forwards, spec, count=True)
        look, self.choices, self.base = watched.look, watched.choices, watched.base
        self.forwards = look.forwards
        self._quiet = frozenset(quiet_layers(watched.plan(), self.base)) \
            if self.budget.sensitivity == 'measured' else frozenset()
        self._check_memory(look)
        prepared = watched.prepare()
        settle_streams(prepared, self.forwards, spec.calibration.seed)
        self.prepared, self.look = prepared, look
        self.bank = WidthBank(prepared, {
            name: self._as_measured(name, widths) for name, widths in self.base.items()})
        if self.budget.sensitivity == 'measured':
            self._record()  # says early what is wrong with the loss
        self._solve()

    def _as_measured(self, name: str, widths: Widths) -> Widths:
        """What stands for some widths of a layer while layers are measured."""
        return Widths(widths.weight, MEASURED_BITS) if name in self._quiet else widths

    @property
    def _solved(self) -> dict[str, tuple[Widths, ...]]:
        """All widths that layers are solved at."""
        return {name: tuple(dict.fromkeys((*row, *(
            self._as_measured(name, widths) for widths in row))))
            for name, row in self.choices.items()}

    def _check_memory(self, look: Watching) -> None:
        spec, model = self.spec, self.forwards.model
        geometries = planned_geometries(model, look.flow, self.watched.plan())
        judged = batches_to_judge(self.forwards.total, spec.calibration)[0]
        device = next((value.device for value in model.parameters()), torch.device('cpu'))
        check_large_layers(self.method, geometries)
        estimate(look.flow, geometries, self._solved, spec.calibration, [*look.sizes.values()],
                 [size for number, size in look.sizes.items() if number in judged]).check(
                     memory_budget(spec.calibration.memory_budget, device))

    def _solve(self) -> None:
        counts, layers = self.look.counts, self.prepared.layers
        sampler = Sampler(replace(self.spec.calibration, sampling='even'), self.forwards.total,
                          {name: self.look.flow.calls[name] for name in layers},
                          totals(counts, layers), reached_by(counts, layers),
                          masks=row_masks(self.look.forwards.batches,
                                          self.spec.calibration.row_mask))
        calibration = self.spec.calibration
        learner = UnitLearner.of(
            self.prepared, self.look, self.method, seed=calibration.seed,
            holdout=calibration.holdout, budget=row_bytes(calibration),
            overrides=self.spec.overrides)
        wanted = self._solved
        solver = WidthSolver(self.prepared, self.look, self.method, wanted, self.base,
                             sampler, learner, channels=self.budget.sensitivity == 'fisher')
        known = {name: row for name, row in self.forwards.team.from_first(
            self.journal.solved()).items() if set(row) == set(wanted.get(name, ()))}
        outputs = {name: row[self.base[name]].solution.output_qparams
                   for name, row in known.items()}
        clock = _Clock('solve', len(layers) - len(known), self.progress)
        for name, row in solver.solve(outputs, lambda step, steps: self.progress(
                WidthProgress('gather', step, steps))):
            self.journal.keep_solved(name, row)
            known[name] = row
            clock.tell(name)
        for name in layers:  # in execution order
            for widths, banked in known[name].items():
                self.bank.add(name, widths, banked)

    def _model_losses(self) -> dict[str, dict[Widths, float]]:
        """Of the base model with each layer at each of its widths."""
        known = self.forwards.team.from_first(self.journal.losses())
        found, base = {}, self.losses.base
        clock = _Clock('measure', len(self.choices), self.progress)
        for name, choices in self.choices.items():
            row = known.get(name, {})
            if set(row) != set(choices):
                row = {widths: base if widths == self.base[name] else self.losses.of(
                    {name: self._as_measured(name, widths)}) for widths in choices}
                self.journal.keep_losses(name, row)
            found[name] = {widths: mean(values) for widths, values in row.items()}
            clock.tell(name)
        return found

    def _errors(self) -> dict[str, dict[Widths, float]]:
        """Of each layer's output by itself."""
        return {name: {widths: banked.error for widths, banked in row.items()}
                for name, row in self.bank.layers.items()}

    def _weighted_errors(self) -> dict[str, dict[Widths, float]]:
        """Of each layer's output, squared and weighted by what the loss makes of it.

        As if errors at different places had nothing to do with each other: a channel whose mean is
        shifted (rounding without ``bias_correction``) before a pool over the image costs more.
        """
        last = last_layers(self.look.flow)
        self.bank.take_out()
        gradients = ImportancePass(
            prepared=self.prepared, forwards=self.forwards, last=last,
            kind=usual_kind([self.forwards.model.get_submodule(name) for name in last]),
            seed=self.spec.calibration.seed, energies=frozenset(self.prepared.layers))
        with streams_through():
            weights = gradients.run(lambda step, steps: self.progress(
                WidthProgress('importance', step, steps))).energies
        return {name: {widths: float((weights[name] * banked.channels).sum())
                       if name in weights else 0.0 for widths, banked in row.items()}
                for name, row in self.bank.layers.items()}

    @contextmanager
    def _computing(self) -> Iterator[Any]:
        """Around what computes: as in a calibration, whatever modes the caller is in."""
        with full_float32(), state_of_its_own() as caller, torch.no_grad():
            yield caller


class _Clock:
    """Tells steps of a stage, and how long the rest will take."""

    def __init__(self, stage: str, steps: int, progress: Callable[[WidthProgress], None]):
        self.stage, self.steps, self.progress = stage, steps, progress
        self.step, self.started = 0, time.perf_counter()

    def tell(self, layer: str) -> None:
        self.step += 1
        left = (time.perf_counter() - self.started) / self.step * (self.steps - self.step)
        self.progress(WidthProgress(self.stage, self.step, self.steps, layer, left))


def quiet_layers(plan: BitPlan, base: Mapping[str, Widths]) -> Iterator[str]:
    """Layers whose inputs are quantized to fewer bits than ``MEASURED_BITS``, by request alone.

    Those that read a quantized residual stream have its codes.
    """
    return (layer.name for layer in plan.layers
            if base[layer.name].activation is None and not layer.stream
            and layer.activation.num_bits is not None
            and layer.activation.num_bits < MEASURED_BITS)
