"""Solves units: layer by layer first, then a unit's layers together, which are journalled then."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.calibration.journal import Journal, JournalEntry, ProductEntry
from mmbitsplit.calibration.layer_solver import LayerSolver
from mmbitsplit.calibration.solved_layers import SolvedLayers
from mmbitsplit.calibration.unit_times import UnitTimes
from mmbitsplit.methods import Method
from mmbitsplit.methods.unit_problem import UnitCall
from mmbitsplit.models import DataFlow, PreparedModel, QuantizedLayer
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.streams import rounded_streams
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.passes.repeated_calls import Owner, find_owners
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team, Tell
from mmbitsplit.passes.twin_branches import BatchesDiffer
from mmbitsplit.passes.twin_lockstep import TwinLockstep, UnitWork, WaitingUnit
from mmbitsplit.passes.unit_evidence import UNIT_BYTES, Collection, UnitEvidence
from mmbitsplit.passes.unit_exchange import gather_calls
from mmbitsplit.passes.watching import Watching
from mmbitsplit.passes.width_inputs import WidthInputs
from mmbitsplit.solving.solve_unit import (
    LAYERS,
    UnitLayer,
    UnitOutcome,
    install,
    solve_unit,
    use_streams,
    use_widths,
)
from mmbitsplit.structures import CalibrationSpec, Unit, Widths, summary

BESIDE = 500  # multiplications that the other work of an output is worth, on a CPU, about
UNIT_SHARE = 0.25  # of a memory budget that is given, for the inputs and outputs of a unit
BATCHES_DIFFER = 'batches_differ'  # the journal's fact: a pass that counts calls comes first


@dataclass
class SolvedUnits(SolvedLayers):
    """Layers are kept and told when their unit is solved.

    Args:
        held: Solved layers of units that are not, by name.
    """

    held: dict[str, JournalEntry] = field(default_factory=dict)

    def _keep(self, entry: JournalEntry) -> None:
        self.held[entry.name] = entry

    def finish(self, unit: Unit, outcome: UnitOutcome, seconds: float) -> None:
        """A unit is solved; its layers have other codes now, or those that they had.

        Args:
            unit: Its layers.
            outcome: What was taken.
            seconds: That it took, beside solving its layers.
        """
        for name in unit.layers:
            entry, solution = self.held.pop(name), outcome.solutions[name]
            report = entry.report
            report.unit_errors, report.unit_taken = dict(outcome.errors), outcome.taken
            report.unit_figures = outcome.figures
            if self.prepared.layers[name].several:
                report.width_errors = [dict(one) for one in outcome.width_errors]
            report.seconds += seconds / len(unit.layers)
            report.notes += outcome.notes
            if outcome.taken != LAYERS:
                report.weight_scale = summary(solution.weight_scale)
                if solution.qparams is not None:
                    report.activation_scale = summary(solution.qparams.scale)
                report.notes.append("changed together with the unit's other layers afterwards; "
                                    'the error of the layer is that before')
            super()._keep(replace(entry, solution=solution))
        if self.journal is not None:
            self.journal.unit_is_done()


@dataclass(frozen=True)
class UnitSolver:
    """Called by the twin pass, with the units that wait at once.

    With several processes each unit is learned by one of them, from the calls of all, and the
    others get what it took.

    Args:
        prepared: The model.
        method: One that solves units.
        solved: Where solutions go.
        stopwatch: Told what solving takes.
        team: The processes.
        importance: Of the channels of units' outputs, where the method asks for it.
        times: Tells how far learning is.
        widths: Gives units their inputs at several widths, ``None`` where there is one.
    """

    prepared: PreparedModel
    method: Method
    solved: SolvedUnits
    stopwatch: Stopwatch
    team: Team
    importance: Mapping[str, Tensor]
    times: UnitTimes
    widths: WidthInputs | None = None

    def __call__(self, waiting: list[WaitingUnit]) -> set[str]:
        """Improves units whose layers are solved; takes them out of the list as they are.

        Returns:
            Names of those that have other codes now.
        """
        changed: set[str] = set()
        with self.stopwatch('solve'):
            while waiting:
                changed |= self._side_by_side([waiting.pop(0) for _ in waiting[:self.team.size]])
        return changed

    def _side_by_side(self, waiting: list[WaitingUnit]) -> set[str]:
        """At most one for each process."""
        evidence, mine = [one.evidence for one in waiting], ()
        for rank, one in enumerate(evidence):  # nothing of the others is held while one is learned
            inputs = waiting.pop(0).inputs
            narrower = self.widths.of(one, inputs) if self.widths is not None else ()
            calls = gather_calls(one, inputs, self.team, rank, self._device(one), narrower)
            del inputs, narrower
            mine = calls if rank == self.team.rank else mine
        del calls
        own = evidence[self.team.rank] if self.team.rank < len(evidence) else None
        results = self.team.apart(
            lambda tell: None if own is None else self._learn(own, mine, tell),
            lambda news: self.times.tell(*news))
        changed = set()
        for rank, one in enumerate(evidence):
            unit, (outcome, seconds) = one.function.unit, results[rank]
            if rank != self.team.rank:
                install(self._layers(unit), outcome.solutions)
            self.solved.finish(unit, outcome, seconds)
            self.times.finish(unit.name, seconds, learned=len(outcome.errors) > 0)
            changed |= set() if outcome.taken == LAYERS else {unit.name}
        return changed

    def _learn(self, evidence: UnitEvidence, calls: tuple[UnitCall, ...], tell: Tell,
               ) -> tuple[UnitOutcome, float]:
        started, unit = time.perf_counter(), evidence.function.unit

        def progress(step: int, steps: int) -> None:
            if self.times.due(step, steps):
                tell((unit.name, step, steps, time.perf_counter() - started))

        journal = self.solved.journal  # of the first process
        outcome = solve_unit(
            evidence, calls, self._layers(unit), self.method, products=self._products(unit),
            streams=self._streams(unit),
            progress=progress,
            snapshots=None if journal is None else journal.unit_state(unit.name),
            importance=self.importance.get(unit.name),
            widths=() if self.widths is None else tuple(self.widths.widths))
        return outcome, time.perf_counter() - started

    def _layers(self, unit: Unit) -> dict[str, UnitLayer]:
        plans = {plan.name: plan for plan in self.prepared.plan.layers}
        return {name: UnitLayer(self.prepared.layers[name], plans[name]) for name in unit.layers}

    def _products(self, unit: Unit) -> list[Product]:
        """Those inside the unit's modules."""
        return [product for name, product in self.prepared.products.items() if _inside(name, unit)]

    def _streams(self, unit: Unit) -> list[nn.Module]:
        """Of the unit's modules and those inside, the ones that give rounded streams."""
        return [module for name, module in rounded_streams(self.prepared.model)
                if _inside(name, unit)]

    def _device(self, evidence: UnitEvidence) -> torch.device:
        return self.prepared.layers[evidence.function.unit.layers[0]].product_weight.device


def _inside(name: str, unit: Unit) -> bool:
    """Whether a module is one of a unit's, or inside of one."""
    return any(f'{name}.'.startswith(f'{module}.') for module in unit.modules)


def solve_units(look: Watching, prepared: PreparedModel, run: FloatRun, method: Method,
                solved: SolvedUnits, stopwatch: Stopwatch, widths: Sequence[Widths] = ()) -> None:
    """Runs the pass with two branches a batch, and solves all units that are left.

    Args:
        look: What is known of the model.
        prepared: It, with the solutions that were taken over.
        run: Positions and the tape; its record is filled.
        method: One that solves units.
        solved: Where solutions go; what was taken over is there.
        stopwatch: Told what it takes.
        widths: That units are learned at, rising, where layers have several.

    Raises:
        BatchesDiffer: A batch calls other layers than the watched one, and calls have not been
            counted.
    """
    forwards, layers = look.forwards, prepared.layers
    team = forwards.team
    counts = {batch: {name: look.counts.get(batch, look.flow.calls).get(name, 0)
                      for name in prepared.sites} for batch in range(forwards.total)}
    patterns = [pattern for part in team.gather(look.patterns) for pattern in part]
    owners = find_owners(look.flow, set(prepared.sites), patterns)
    done = {report.name for report in solved.reports}
    units = [unit for unit in solved.units if not done.issuperset(unit.layers)]
    times = UnitTimes(units, {unit.name: work_of(unit, look.flow, layers)
                              for unit in units}, solved.progress)
    work = UnitWork(
        units=units,
        solve=UnitSolver(prepared, method, solved, stopwatch, team, run.importance.channels,
                         times, None if not widths else WidthInputs(
                             forwards=forwards, tape=run.tape, widths=widths,
                             use=partial(_use_everywhere, prepared))),
        collection=Collection(
            batches=forwards.total, seed=run.sampler.spec.seed,
            sizes={batch: size for part in team.gather(look.sizes)
                   for batch, size in part.items()},
            budget=unit_bytes(run.sampler.spec) // most_open(solved.units, owners),
            holdout=run.sampler.spec.holdout, inputs=inputs_kept(widths)))
    lockstep = TwinLockstep(
        prepared, forwards, counts, owners, run.sampler, run.tape,
        LayerSolver(prepared, forwards, run, method, solved, stopwatch),
        work=work, record=run.record, done=done)
    with stopwatch('quantized_pass'):
        lockstep.run()
    # What the float branches took is told for itself.
    stopwatch.seconds['quantized_pass'] -= run.record.seconds_forward + run.record.seconds_sampling


def _use_everywhere(prepared: PreparedModel, widths: Widths) -> None:
    """Switches all that is solved, and all residual streams."""
    use_widths(prepared.sites.values(), widths)
    use_streams((module for _, module in rounded_streams(prepared.model)), widths)


def work_of(unit: Unit, flow: DataFlow, layers: Mapping[str, QuantizedLayer]) -> float:
    """Multiplications of a unit in a forward of a batch, and what is done beside them."""
    return float(sum(sum(flow.output_sizes[name]) * (
        layers[name].geometry.inputs_per_output + BESIDE) for name in unit.layers))


def most_open(units: Sequence[Unit], owners: Mapping[str, Owner]) -> int:
    """How many units are collected at once: all that are inside of one call that is repeated."""
    return max((sum(owner.layers.issuperset(unit.layers) for unit in units)
                for owner in owners.values()), default=0) or 1


def inputs_kept(widths: Sequence[Widths]) -> int:
    """Maps of a unit's input that are kept: of the float model, and of each width."""
    return 1 + max(1, len(widths))


def unit_bytes(spec: CalibrationSpec) -> int:
    """Bytes for the inputs and outputs of units: of the request alone, never of the machine, so
    that the same is kept when a calibration is resumed."""
    if spec.memory_budget is None:
        return UNIT_BYTES
    return min(UNIT_BYTES, int(UNIT_SHARE * spec.memory_budget * 1e9))


def take_whole_units(journal: Journal | None, units: Sequence[Unit]) -> None:
    """Drops the layers of a unit from a journal that was killed while they were written."""
    if journal is None:
        return
    unit_of = {name: unit for unit in units for name in unit.layers}
    open_layers: set[str] = set()
    whole = 0
    for index, entry in enumerate(journal.entries):
        if isinstance(entry, ProductEntry):  # solved by itself, among the layers of units
            whole = whole if open_layers else index + 1
            continue
        unit = unit_of.get(entry.name)
        if unit is not None or entry.report.kind != 'embedding':  # of no unit, and whole
            open_layers.add(entry.name)
        if unit is not None and open_layers.issuperset(unit.layers):
            open_layers -= set(unit.layers)
        if not open_layers:
            whole = index + 1
    journal.keep_first(whole)


def counting_if_batches_differ(model: nn.Module, journal: Journal | None, team: Team,
                               attempt: Callable[[bool], Any]) -> Any:
    """Calibrates, taking all batches to call the same layers; once more where they do not.

    Args:
        model: As it was before.
        team: The processes; the first has the journal.
        journal: Begun again then, as layers were solved from calls that were not all.
        attempt: Calibrates; told whether to count calls first.

    Raises:
        RuntimeError: They call other layers than when they were counted.
    """
    if not team.from_first(journal is not None and journal.facts.get(BATCHES_DIFFER)):
        try:
            with as_it_was_on_error(model):
                return attempt(False)
        except BatchesDiffer:
            if journal is not None:
                journal.begin_again()
                journal.remember(**{BATCHES_DIFFER: True})
    try:
        return attempt(True)
    except BatchesDiffer as error:
        raise RuntimeError('Run again on the same batch, the model calls other layers, or calls '
                           'them more or less often. Calibration needs a forward that repeats '
                           'itself.') from error
