"""Calibrates a model: looks at it, prepares it, and solves its layers in lockstep."""

import functools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmbitsplit.calibration.float_run import FloatRun, prepare_run, run_float
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.layer_solver import LayerSolver, Progress
from mmbitsplit.calibration.memory import (
    BUDGET,
    NOTHING,
    MemoryEstimate,
    available_bytes,
    check_memory,
    estimate_memory,
)
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.methods import Method, build_method, check_data_free
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.surgery.prepare import planned_geometries
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.passes.batches import batch_size
from mmbitsplit.passes.call_counts import reached_by
from mmbitsplit.passes.float_pass import FloatRecord
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.lockstep import Lockstep
from mmbitsplit.passes.random_check import randomness
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.passes.replay import ReplayPoint, replaying
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import in_a_state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.request_plan import check_request, layers_to_find, make_plan
from mmbitsplit.planning.units import find_units
from mmbitsplit.solving.solved_model import KeptModel
from mmbitsplit.structures import BitPlan, QuantizationReport, QuantSpec, plan_value


@full_float32()
@in_a_state_of_its_own
def calibrate(model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
              run: Callable[[nn.Module, Any], Any],
              replay_points: Sequence[ReplayPoint] = (),
              labels: Sequence[str] | None = None,
              progress: Callable[[Progress], None] = lambda step: None,
              team: Team | None = None, journal: Journal | None = None,
              planned: Callable[[BitPlan], None] = lambda plan: None,
              ) -> tuple[PreparedModel, QuantizationReport]:
    """Quantizes a model in place: two forwards a batch, layer after layer.

    An error or Ctrl-C on the way leaves the model as it was.

    Args:
        model: Float model; put into eval mode. Parts that ``torch.compile`` made run uncompiled
            until the calibration is over.
        batches: Calibration batches, at least one; all are kept in memory. With a team of
            several, this process's share: ``team.batches`` says which. With
            ``calibration.num_images=0``, any inputs to see how values flow; their values do not
            matter.
        spec: The request.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: Calls whose results are recorded in the float pass and replayed.
        labels: What each batch is called in error messages.
        progress: Told every step.
        team: The processes that calibrate together; this one alone when not given.
        journal: Layers that an interrupted calibration has solved are taken over from it, those
            solved now are added; the first process of a team has it, the others give ``None``.
        planned: Told the plan before anything is solved, and again where a batch shows more.

    Returns:
        The prepared model, every planned layer quantized, and the report.

    Raises:
        ValueError: A model that is quantized already or has no layer to quantize, no batches, an
            unknown method or option, activations that are not finite, a layer that is never
            reached, overrides or a scope that match nothing, more than the memory budget.
    """
    team = team or Team()
    total = team.total(len(batches))
    if not total:
        raise ValueError('The calibration set is empty; at least one batch of images is needed.')
    check_data_free(spec)
    numbers = team.batches(total)
    assert len(numbers) == len(batches), (team.rank, len(batches), numbers)
    method = build_method(spec.method)
    by_number = dict(zip(numbers, batches))
    labels = dict(zip(numbers, labels or [f'batch {number}' for number in numbers]))
    model = as_written(model)
    check_request(model, spec)
    with uncompiled(model), as_it_was_on_error(model):
        return _calibrate(model.eval(), by_number, spec, run, method, replay_points, labels,
                          progress, team, journal, planned)


def _calibrate(model: nn.Module, by_number: Mapping[int, Any], spec: QuantSpec,
               run: Callable[[nn.Module, Any], Any], method: Method,
               replay_points: Sequence[ReplayPoint], labels: Mapping[int, str],
               progress: Callable[[Progress], None], team: Team, journal: Journal | None,
               planned: Callable[[BitPlan], None],
               ) -> tuple[PreparedModel, QuantizationReport]:
    """As ``calibrate``, whose checks have been passed; batches and labels by number."""
    stopwatch, started = Stopwatch(), time.perf_counter()
    total, data_free = team.total(len(by_number)), spec.calibration.num_images == 0
    state = ForwardState(model, spec.calibration.seed)
    with stopwatch('watch'):
        look = Watching(model, by_number, layers_to_find(model, spec), run, replay_points, labels,
                        team, state)
        prepared, estimate = _prepare(look, spec, total)
    planned(prepared.plan)
    if method.refines:  # solved layers alone say too little to go on from
        journal = None
    entries = team.from_first(journal.entries if journal is not None else [])
    done = {entry.name for entry in entries}
    to_run = len(done) < len(prepared.layers) and not data_free

    def float_run() -> FloatRun:
        return run_float(prepared, look, spec.calibration, method, done, stopwatch,
                         lambda step, steps: progress(Progress('float', step, steps)))

    if to_run:
        found = float_run()
        new = look.take_in(found.record.counts)
        if new:  # roles and folded batch norms rest on what was seen
            prepared.put_back()
            with stopwatch('watch'):
                look.watch(new)
                prepared, estimate = _prepare(look, spec, total)
            planned(prepared.plan)
        if new or found.sampler.far_off(look.counts):
            found = float_run()
        found.sampler.reached.update(reached_by(look.counts, prepared.layers))
        if journal is not None:
            journal.remember(float_forward=found.record.seconds_forward)
    else:
        found = prepare_run(prepared, look, spec.calibration, method, stopwatch)
        if journal is not None:
            found.record.seconds_forward = journal.facts.get('float_forward', 0.0)
    record, loss = found.record, found.loss
    warnings = _random_forwards(look)
    units = find_units(look.flow, prepared.plan, overrides=spec.overrides, counts=look.counts)
    solver = LayerSolver(prepared, record, method, labels, team, journal, stopwatch, progress,
                         KeptModel(loss) if loss else None, units)
    solver.take_over(entries)
    if data_free:
        solver.solve_without_images()
    elif to_run:
        lockstep = Lockstep(
            prepared, by_number, lambda batch: run(model, batch), record.counts,
            find_owners(look.flow, set(prepared.layers), record.patterns), found.sampler,
            found.tape, solver, team, state)
        with stopwatch('quantized_pass'), state.kept(), \
                replaying(replay_points, found.tape, lockstep.current_batch):
            lockstep.run()
    solver.check_complete()
    refinement = solver.refine() if method.refines else {}
    prepared.release_float()
    reports = {report.name: report for report in solver.reports}
    selections = [replace(selection, reaches=tuple(layers))
                  for selection, layers in look.flow.selections.items()]
    for selection in selections:
        for name in set(selection.reaches) & set(reports):
            reports[name].notes.append(
                f'gets what {selection} decides by values of layers; no replay point covers that')
    return prepared, QuantizationReport(
        # Side by side towers may be solved in either order: the plan's is always the same.
        layers=[reports[layer.name] for layer in prepared.plan.layers],
        kept_float=list(prepared.plan.kept_float),
        folded_batch_norms=sorted(prepared.folded),
        seconds=_seconds(stopwatch, record, time.perf_counter() - started),
        calibration={'num_batches': total, 'seed': spec.calibration.seed,
                     'processes': team.size, 'layers_taken_over': len(done)},
        method=dict(spec.method),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        estimated_bytes=estimate.total, refinement=refinement, selections=selections,
        warnings=warnings, units=list(units), plan=plan_value(prepared.plan))


def _random_forwards(look: Watching) -> list[str]:
    """Says what random numbers change that forwards drew; the same in every process."""
    found = None
    if look.state.drawn and look.batches:
        number = min(look.batches, key=lambda number: batch_size(look.batches[number]))
        found = randomness(look.model, functools.partial(look.run, look.model,
                                                         look.batches[number]),
                           number, look.points, look.state)
    return list(filter(None, look.team.gather(found)))[:1]


def _prepare(look: Watching, spec: QuantSpec, num_batches: int,
             ) -> tuple[PreparedModel, MemoryEstimate]:
    """Plan, memory check and surgery, again where the surgery's check saw something new."""
    while True:
        plan = make_plan(look.model, look.flow, spec)
        find_units(look.flow, plan, overrides=spec.overrides)  # refuses early what cannot be
        estimate = NOTHING if spec.calibration.num_images == 0 else \
            _check_memory(look, plan, spec, num_batches)
        prepared = look.prepare(plan)
        if prepared is not None:
            return prepared, estimate


def _check_memory(look: Watching, plan: BitPlan, spec: QuantSpec, num_batches: int,
                  ) -> MemoryEstimate:
    geometries = planned_geometries(look.model, look.flow, plan)
    owners = find_owners(look.flow, set(geometries))
    estimate = estimate_memory(look.flow, geometries, owners, look.sizes,
                               spec.calibration.rows_per_layer, num_batches)
    budget = spec.calibration.memory_budget
    device = next((value.device for value in look.model.parameters()), torch.device('cpu'))
    check_memory(estimate, BUDGET * available_bytes(device) if budget is None else budget * 1e9,
                 len(look.batches) * spec.calibration.batch_size, look.team.size)
    return estimate


def _seconds(stopwatch: Stopwatch, record: FloatRecord, total: float) -> dict[str, float]:
    """Where the time went; see ``QuantizationReport``."""
    parts = stopwatch.seconds
    sampling = parts['sampling'] - record.seconds_sampling  # in the quantized pass
    return {'float_forward': record.seconds_forward,
            'quantized_forward': parts['quantized_pass'] - parts['solve'] - sampling,
            **{name: parts[name] for name in (
                'watch', 'sampling', 'solve', 'solve_scales', 'solve_statistics', 'solve_codes')},
            'calibration': total}
