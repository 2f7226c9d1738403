"""Solves units: layer by layer first, then a unit's layers together, which are journalled then."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.calibration.journal import Journal, JournalEntry
from mmbitsplit.calibration.layer_solver import LayerSolver
from mmbitsplit.calibration.solved_layers import SolvedLayers
from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.passes.repeated_calls import Owner, find_owners
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.twin_lockstep import BatchesDiffer, TwinLockstep, UnitWork
from mmbitsplit.passes.unit_evidence import UNIT_BYTES, Collection, UnitEvidence
from mmbitsplit.passes.watching import Watching
from mmbitsplit.solving.solve_unit import LAYERS, UnitLayer, UnitOutcome, solve_unit
from mmbitsplit.structures import CalibrationSpec, Unit, summary

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
            report.seconds += seconds / len(unit.layers)
            report.notes += outcome.notes
            if outcome.taken != LAYERS:
                report.weight_scale = summary(solution.weight_scale)
                if solution.qparams is not None:
                    report.activation_scale = summary(solution.qparams.scale)
                report.notes.append("changed together with the unit's other layers afterwards; "
                                    'the error of the layer is that before')
            super()._keep(replace(entry, solution=solution))


@dataclass(frozen=True)
class UnitSolver:
    """Called by the twin pass, unit after unit.

    Args:
        prepared: The model.
        method: One that solves units.
        solved: Where solutions go.
        stopwatch: Told what solving takes.
    """

    prepared: PreparedModel
    method: Method
    solved: SolvedUnits
    stopwatch: Stopwatch

    def __call__(self, evidence: UnitEvidence, inputs: dict[int, list[Tensor]]) -> bool:
        """Improves a unit whose layers are solved; says whether it has changed codes."""
        started, unit = time.perf_counter(), evidence.function.unit
        plans = {plan.name: plan for plan in self.prepared.plan.layers}
        layers = {name: UnitLayer(self.prepared.layers[name], plans[name])
                  for name in unit.layers}
        with self.stopwatch('solve'):
            outcome = solve_unit(evidence, inputs, layers, self.method)
        self.solved.finish(unit, outcome, time.perf_counter() - started)
        return outcome.taken != LAYERS


def solve_units(look: Watching, prepared: PreparedModel, run: FloatRun, method: Method,
                solved: SolvedUnits, stopwatch: Stopwatch) -> None:
    """Runs the pass with two branches a batch, and solves all units that are left.

    Args:
        look: What is known of the model.
        prepared: It, with the solutions that were taken over.
        run: Positions and the tape; its record is filled.
        method: One that solves units.
        solved: Where solutions go; what was taken over is there.
        stopwatch: Told what it takes.

    Raises:
        BatchesDiffer: A batch calls other layers than the watched one, and calls have not been
            counted.
    """
    forwards, layers = look.forwards, prepared.layers
    counts = {batch: {name: look.counts.get(batch, look.flow.calls).get(name, 0)
                      for name in layers} for batch in forwards.batches}
    owners = find_owners(look.flow, set(layers), look.patterns)
    done = {report.name for report in solved.reports}
    work = UnitWork(
        units=[unit for unit in solved.units if not done.issuperset(unit.layers)],
        solve=UnitSolver(prepared, method, solved, stopwatch),
        collection=Collection(
            batches=forwards.total, sizes=look.sizes, seed=run.sampler.spec.seed,
            budget=unit_bytes(run.sampler.spec) // most_open(solved.units, owners),
            holdout=run.sampler.spec.holdout))
    lockstep = TwinLockstep(
        prepared, forwards, counts, owners, run.sampler, run.tape,
        LayerSolver(prepared, forwards, run, method, solved, stopwatch),
        work=work, record=run.record, done=done)
    with stopwatch('quantized_pass'):
        lockstep.run()
    # What the float branches took is told for itself.
    stopwatch.seconds['quantized_pass'] -= run.record.seconds_forward + run.record.seconds_sampling


def most_open(units: Sequence[Unit], owners: Mapping[str, Owner]) -> int:
    """How many units are collected at once: all that are inside of one call that is repeated."""
    return max((sum(owner.layers.issuperset(unit.layers) for unit in units)
                for owner in owners.values()), default=0) or 1


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
        open_layers.add(entry.name)
        unit = unit_of.get(entry.name)
        if unit is not None and open_layers.issuperset(unit.layers):
            open_layers -= set(unit.layers)
        if not open_layers:
            whole = index + 1
    journal.keep_first(whole)


def counting_if_batches_differ(model: nn.Module, journal: Journal | None,
                               attempt: Callable[[bool], Any]) -> Any:
    """Calibrates, taking all batches to call the same layers; once more where they do not.

    Args:
        model: As it was before.
        journal: Begun again then, as layers were solved from calls that were not all.
        attempt: Calibrates; told whether to count calls first.

    Raises:
        RuntimeError: They call other layers than when they were counted.
    """
    if journal is None or not journal.facts.get(BATCHES_DIFFER):
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


def check_alone(method: Method, num_processes: int) -> None:
    """Raises ``ValueError`` where several processes are to solve units."""
    name = type(method).__name__
    if num_processes > 1:
        raise ValueError(f'{name} solves units, which one process does alone; here are '
                         f'{num_processes}. Start one process, or take a method that solves '
                         'layers.')
