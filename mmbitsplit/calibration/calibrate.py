"""Calibrates a model: looks at it, prepares it, and solves its layers in lockstep."""

import functools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmbitsplit.calibration.capture import Sampler
from mmbitsplit.calibration.float_pass import FloatRecord, float_pass
from mmbitsplit.calibration.forward_state import ForwardState
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.layer_solver import LayerSolver, Progress
from mmbitsplit.calibration.lockstep import Lockstep
from mmbitsplit.calibration.memory import (
    BUDGET,
    NOTHING,
    MemoryEstimate,
    available_bytes,
    batch_size,
    check_memory,
    estimate_memory,
)
from mmbitsplit.calibration.methods import Method, build_method, check_data_free
from mmbitsplit.calibration.model_loss import ModelLoss
from mmbitsplit.calibration.random_check import randomness
from mmbitsplit.calibration.refinement import Refinement
from mmbitsplit.calibration.replay import ReplayPoint, Tape, barrier, recording, replaying
from mmbitsplit.calibration.shared import Owner, find_owners
from mmbitsplit.calibration.stopwatch import Stopwatch
from mmbitsplit.calibration.team import Team
from mmbitsplit.calibration.thread_state import in_a_state_of_its_own
from mmbitsplit.calibration.uncompiled import as_written, uncompiled
from mmbitsplit.functional.precision import full_float32
from mmbitsplit.models import (
    DataFlow,
    PreparedModel,
    QuantizedLayer,
    check_request,
    layer_kind,
    prepare,
    watch,
)
from mmbitsplit.models.undo import as_it_was_on_error
from mmbitsplit.structures import QuantizationReport, QuantSpec


@full_float32()
@in_a_state_of_its_own
def calibrate(model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
              run: Callable[[nn.Module, Any], Any],
              replay_points: Sequence[ReplayPoint] = (),
              labels: Sequence[str] | None = None,
              progress: Callable[[Progress], None] = lambda step: None,
              team: Team | None = None, journal: Journal | None = None,
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
                          progress, team, journal)


def _calibrate(model: nn.Module, by_number: Mapping[int, Any], spec: QuantSpec,
               run: Callable[[nn.Module, Any], Any], method: Method,
               replay_points: Sequence[ReplayPoint], labels: Mapping[int, str],
               progress: Callable[[Progress], None], team: Team, journal: Journal | None,
               ) -> tuple[PreparedModel, QuantizationReport]:
    """As ``calibrate``, whose checks have been passed; batches and labels by number."""
    stopwatch, started = Stopwatch(), time.perf_counter()
    total, data_free = team.total(len(by_number)), spec.calibration.num_images == 0
    state = ForwardState(model, spec.calibration.seed)
    with stopwatch('watch'):
        flow, sizes = watch_batches(model, by_number, state.leaving_no_trace(run), replay_points,
                                    team)
    estimates = []
    prepared = prepare(model, flow, spec, lambda layers: estimates.append(
        NOTHING if data_free else _check_memory(
            model, flow, layers, find_owners(flow, set(layers)), sizes, spec, total, team.size)))
    state.modules.follow(prepared.layers.values())
    estimate, owners = estimates[0], find_owners(flow, set(prepared.layers))
    if method.refines:  # solved layers alone say too little to go on from
        journal = None
    entries = team.from_first(journal.entries if journal is not None else [])
    done = {entry.name for entry in entries}
    sampler = Sampler(spec.calibration, total,
                      {name: flow.calls[name] for name in prepared.layers}, stopwatch)
    tape, current = Tape(), {'batch': 0}
    record = FloatRecord()
    loss = ModelLoss(model, flow, by_number, lambda batch: run(model, batch), replay_points, tape,
                     team, method.loss, method.loss_batches, state) if method.refines else None
    to_run = len(done) < len(prepared.layers) and not data_free
    if to_run:
        with stopwatch('float_pass'), recording(replay_points, tape, lambda: current['batch']), \
                loss.recording(lambda: current['batch']) if loss else nullcontext():
            record = float_pass(
                prepared, by_number, lambda batch: run(model, batch), sampler, labels, done,
                enter=lambda batch: current.update(batch=batch), state=state,
                progress=lambda step, steps: progress(Progress('float', step, steps)))
        if journal is not None:
            journal.remember(float_forward=record.seconds_forward)
    elif journal is not None:
        record.seconds_forward = journal.facts.get('float_forward', 0.0)
    warnings = _random_forwards(model, by_number, run, replay_points, state, team)
    solver = LayerSolver(prepared, record, method, labels, team, journal, stopwatch, progress,
                         Refinement(loss) if loss else None)
    solver.take_over(entries)
    if data_free:
        solver.solve_without_images()
    elif to_run:
        lockstep = Lockstep(prepared, by_number, lambda batch: run(model, batch), record.counts,
                            owners, sampler, tape, solver, team, state)
        with stopwatch('quantized_pass'), state.kept(), \
                replaying(replay_points, tape, lockstep.current_batch):
            lockstep.run()
    solver.check_complete()
    refinement = solver.refine() if method.refines else {}
    reports = {report.name: report for report in solver.reports}
    selections = [replace(selection, reaches=tuple(layers))
                  for selection, layers in flow.selections.items()]
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
        warnings=warnings)


def _random_forwards(model: nn.Module, batches: Mapping[int, Any],
                     run: Callable[[nn.Module, Any], Any], replay_points: Sequence[ReplayPoint],
                     state: ForwardState, team: Team) -> list[str]:
    """Says what random numbers change that forwards drew; the same in every process."""
    found = None
    if state.drawn and batches:
        number = min(batches, key=lambda number: batch_size(batches[number]))
        found = randomness(model, functools.partial(run, model, batches[number]), number,
                           replay_points, state)
    return list(filter(None, team.gather(found)))[:1]


def watch_batches(model: nn.Module, batches: Mapping[int, Any],
                  run: Callable[[nn.Module, Any], Any], replay_points: Sequence[ReplayPoint],
                  team: Team) -> tuple[DataFlow, dict[int, float]]:
    """Looks at batches until one reaches every layer; keeps the one that reaches most.

    Returns:
        The data flow, the same in every process, and the sizes of this process's batches in
        units of the batch that was kept.
    """
    wanted = sum(layer_kind(module) is not None for module in model.modules())
    best, size = DataFlow(), 1
    for batch in batches.values():
        flow = watch(model, functools.partial(run, model, batch), inputs=batch,
                     barriers=[barrier(replay_points)])
        if len(flow.order) > len(best.order):
            best, size = flow, batch_size(batch)
        if len(best.order) == wanted:
            break
    best, size = max(team.gather((best, size)), key=lambda seen: len(seen[0].order))
    return best, {number: batch_size(batch) / size for number, batch in batches.items()}


def _check_memory(model: nn.Module, flow: DataFlow, layers: Mapping[str, QuantizedLayer],
                  owners: Mapping[str, Owner], sizes: Mapping[int, float], spec: QuantSpec,
                  num_batches: int, num_processes: int) -> MemoryEstimate:
    estimate = estimate_memory(flow, layers, owners, sizes,
                               spec.calibration.rows_per_layer, num_batches)
    budget = spec.calibration.memory_budget
    device = next((value.device for value in model.parameters()), torch.device('cpu'))
    check_memory(estimate, BUDGET * available_bytes(device) if budget is None else budget * 1e9,
                 len(sizes) * spec.calibration.batch_size, num_processes)
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
