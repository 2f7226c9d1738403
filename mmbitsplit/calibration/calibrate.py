"""Calibrates a model: looks at it, prepares it, and solves its layers in lockstep."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmbitsplit.calibration.embeddings import solve_embeddings
from mmbitsplit.calibration.float_run import FloatRun, prepare_run, run_float
from mmbitsplit.calibration.importance import find_importance
from mmbitsplit.calibration.journal import Entry, Journal, JournalEntry
from mmbitsplit.calibration.layer_solver import LayerSolver, solve_without_images
from mmbitsplit.calibration.memory import (
    MemoryEstimate,
)
from mmbitsplit.calibration.memory_check import check_plan_memory
from mmbitsplit.calibration.refine import refine
from mmbitsplit.calibration.solved_layers import Progress, SolvedLayers
from mmbitsplit.calibration.tuning import check_norms
from mmbitsplit.calibration.unit_solver import (
    SolvedUnits,
    counting_if_batches_differ,
    solve_units,
    take_whole_units,
)
from mmbitsplit.calibration.width_solver import solve_at_all_widths, tune_widths
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.methods import Method, build_method, check_data_free, check_pipeline
from mmbitsplit.methods.tuning import build_stages
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.passes.batches import batch_size
from mmbitsplit.passes.call_counts import reached_by
from mmbitsplit.passes.float_pass import FloatRecord
from mmbitsplit.passes.forwards import Forwards, check_not_empty
from mmbitsplit.passes.lockstep import Lockstep
from mmbitsplit.passes.random_check import randomness
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.passes.replay import ReplayPoint
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import in_a_state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import divide, open_as_requested
from mmbitsplit.planning.product_plan import multiplication_shares, quantized_shares
from mmbitsplit.planning.request_plan import (
    check_request,
    count_multiplications,
    make_plan,
    sites_to_find,
)
from mmbitsplit.planning.units import find_units
from mmbitsplit.solving.streams import check_method, open_stream_warnings, settle_streams
from mmbitsplit.structures import (
    BitPlan,
    LayerReport,
    QuantizationReport,
    QuantSpec,
    Selection,
    Widths,
    plan_value,
)


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
        spec: The request, without a budget: widths are chosen before.
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
    check_not_empty((team or Team()).total(len(batches)))
    if spec.budget is not None:
        raise ValueError('quantization.budget asks for widths that are not chosen yet: calibrate '
                         'takes those of a plan. Choose them first and give '
                         'quantization.plan in its place.')
    check_pipeline(spec)
    check_data_free(spec)
    method = build_method(spec.method)
    model = as_written(model)
    check_request(model, spec)
    build_stages(spec.tuning)
    with uncompiled(model), as_it_was_on_error(model):
        def attempt(count: bool) -> tuple[PreparedModel, QuantizationReport]:
            forwards = Forwards.of(model.eval(), batches, run, seed=spec.calibration.seed,
                                   replay_points=replay_points, labels=labels, team=team)
            return _calibrate(forwards, spec, method, progress, journal, planned, count)

        if method.solves == 'layer':
            return attempt(count=False)
        return counting_if_batches_differ(model, journal, team or Team(), attempt)


def _calibrate(forwards: Forwards, spec: QuantSpec, method: Method,
               progress: Callable[[Progress], None], journal: Journal | None,
               planned: Callable[[BitPlan], None], count: bool,
               ) -> tuple[PreparedModel, QuantizationReport]:
    """As ``calibrate``, whose checks have been passed; ``count`` as for ``Watching``."""
    stopwatch, started = Stopwatch(), time.perf_counter()
    with stopwatch('watch'):
        forwards = open_as_requested(forwards, spec)
        look = Watching(forwards, sites_to_find(forwards.model, spec), count)
        made = _prepare(look, spec, method, planned)
    if method.solves == 'unit':
        take_whole_units(journal, divide(look, made.prepared.plan, spec, method))
    entries = forwards.team.from_first([] if journal is None else journal.entries)
    made, run = _float_run(look, made, spec, method, {entry.name for entry in entries}, stopwatch,
                           progress, planned)
    if journal is not None:
        if run.record.seconds_forward:
            journal.remember(float_forward=run.record.seconds_forward)
        else:  # it was not run again
            run.record.seconds_forward = journal.facts.get('float_forward', 0.0)
    check_method(made.prepared, method)
    warnings = [*_random_forwards(forwards), *open_stream_warnings(made.prepared),
                *_without_widths(spec)]
    with stopwatch('watch'):
        settle_streams(made.prepared, forwards, spec.calibration.seed)
    solved = _taken_over(entries, look, made, spec, method, journal, progress)
    solve_embeddings(made.prepared, forwards, solved, stopwatch)
    _solve(look, made.prepared, run, method, solved, stopwatch, method.width_pairs(spec))
    solved.check_complete()
    refinement = refine(method, forwards, run, solved, stopwatch) if method.refines else {}
    tuning = tune_widths(build_stages(spec.tuning), look, spec.calibration, solved, stopwatch,
                         made.estimate.no_tuning, method)
    warnings += [f"{outcome['type']} was left out, so the model is as {spec.method['type']} has "
                 f"solved it: {outcome['left_out']}." for outcome in tuning
                 if 'left_out' in outcome]
    made.prepared.release_float()
    _note_reads(look, solved.reports)
    report = QuantizationReport(
        layers=solved.in_order(), kept_float=list(made.prepared.plan.kept_float),
        folded_batch_norms=sorted(made.prepared.folded),
        seconds=_seconds(stopwatch, run.record, time.perf_counter() - started),
        calibration=_facts(look, made, spec, method, entries),
        method=dict(spec.method),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        estimated_bytes=made.estimate.total, refinement=refinement,
        selections=_note_selections(look, solved.reports), warnings=warnings,
        units=list(solved.units), plan=plan_value(made.prepared.plan), tuning=tuning,
        products=solved.products_in_order(),
        multiplications=quantized_shares(
            made.prepared.plan, made.amounts,
            len(look.flow.closed_calls) + len(look.flow.foreign_weights)))
    return made.prepared, report


def _taken_over(entries: Sequence[Entry], look: Watching, made: '_Made', spec: QuantSpec,
                method: Method, journal: Journal | None, progress: Callable[[Progress], None],
                ) -> SolvedLayers:
    """Where solved layers are kept, with those that an interrupted calibration has solved."""
    solved = (SolvedUnits if method.solves == 'unit' else SolvedLayers)(
        made.prepared, divide(look, made.prepared.plan, spec, method), journal, progress)
    solved.calls = look.flow.products
    solved.shares = multiplication_shares(made.amounts)
    for entry in entries:
        solved.take_over(entry)
    return solved


def _facts(look: Watching, made: '_Made', spec: QuantSpec, method: Method,
           entries: Sequence[Entry]) -> dict[str, Any]:
    """What the report says of the images and of how they were run."""
    facts = {'num_batches': look.forwards.total, 'seed': spec.calibration.seed,
             'processes': look.forwards.team.size,
             'layers_taken_over': sum(isinstance(entry, JournalEntry) for entry in entries)}
    if spec.calibration.sampling != 'even':
        facts['sampling'] = spec.calibration.sampling
    if method.solves == 'unit':
        facts['forwards_of_an_image'] = ((3 if look.patterns else 2)
                                         + bool(made.prepared.plan.streams))
    return facts


@dataclass(frozen=True)
class _Made:
    """A prepared model, the memory that its calibration will take, and multiplications by name."""

    prepared: PreparedModel
    estimate: MemoryEstimate
    amounts: dict[str, int]


def _prepare(look: Watching, spec: QuantSpec, method: Method,
             planned: Callable[[BitPlan], None]) -> _Made:
    """Plan, memory check and surgery, again where the surgery's check saw something new."""
    while True:
        plan = make_plan(look.forwards.model, look.flow, spec)
        find_units(look.flow, plan, overrides=spec.overrides)  # refuses early what cannot be
        estimate = check_plan_memory(look, plan, spec, method)
        amounts = count_multiplications(look.forwards.model, look.flow)
        prepared = look.prepare(plan)
        if prepared is not None:
            check_norms(build_stages(spec.tuning), prepared)
            planned(plan)
            return _Made(prepared, estimate, amounts)


def _float_run(look: Watching, made: _Made, spec: QuantSpec, method: Method, done: set[str],
               stopwatch: Stopwatch, progress: Callable[[Progress], None],
               planned: Callable[[BitPlan], None]) -> tuple[_Made, FloatRun]:
    """Runs the float pass where somebody needs it; watches and prepares anew what it shows.

    Args:
        look: What is known of the model.
        made: By that.
        spec, method: Of the request.
        done: Layers that an interrupted calibration has solved.
        stopwatch, progress: Told of the pass.
        planned: Told a new plan.
    """
    # A method that refines looks at all layers again, those solved before too.
    known = set() if method.refines else done
    if not spec.calibration.num_images or not made.prepared.sites.keys() - known:
        return made, prepare_run(made.prepared, look, spec.calibration, method, stopwatch)

    def begin() -> FloatRun:
        begun = prepare_run(made.prepared, look, spec.calibration, method, stopwatch)
        find_importance(begun, made.prepared, look, spec, method, known, stopwatch,
                        lambda step, steps: progress(Progress('importance', step, steps)))
        return begun

    def run() -> FloatRun:
        return run_float(begin(), made.prepared, look, known, stopwatch,
                         lambda step, steps: progress(Progress('float', step, steps)))

    if method.solves == 'unit':  # float forwards run beside the quantized ones
        return made, begin()
    found = run()
    new = look.take_in(found.record.counts)
    if new:  # roles and folded batch norms rest on what was seen
        made.prepared.put_back()
        with stopwatch('watch'):
            look.watch(new)
            made = _prepare(look, spec, method, planned)
    if new or found.sampler.far_off(look.counts):
        found = run()
    found.sampler.reached.update(reached_by(look.counts, made.prepared.sites))
    return made, found


def _solve(look: Watching, prepared: PreparedModel, run: FloatRun, method: Method,
           solved: SolvedLayers, stopwatch: Stopwatch, widths: Sequence[Widths]) -> None:
    """Solves all layers that have not been taken over."""
    if not run.sampler.spec.num_images:
        solve_without_images(prepared, method, solved, stopwatch)
    elif all(site.quantized for site in prepared.sites.values()):
        pass
    elif isinstance(solved, SolvedUnits):
        solve_units(look, prepared, run, method, solved, stopwatch, widths)
    elif prepared.plan.several_widths:
        solve_at_all_widths(look, prepared, run, method, solved, stopwatch)
    else:
        owners = find_owners(look.flow, set(prepared.sites), run.record.patterns)
        solver = LayerSolver(prepared, look.forwards, run, method, solved, stopwatch)
        lockstep = Lockstep(prepared, look.forwards, run.record.counts, owners, run.sampler,
                            run.tape, solver)
        with stopwatch('quantized_pass'):
            lockstep.run()


def _without_widths(spec: QuantSpec) -> list[str]:
    """Says that a pipeline has left out its choice of widths."""
    if spec.pipeline is None or spec.plan is not None:
        return []
    return [f'quantization.pipeline={spec.pipeline!r} has chosen no widths, all are as requested: '
            'it does so within a quantization.budget, such as dict(weight_bits=4.5).']


def _random_forwards(forwards: Forwards) -> list[str]:
    """Says what random numbers change that forwards drew; the same in every process."""
    found = None
    if forwards.state.drawn and forwards.batches:
        found = randomness(forwards, min(
            forwards.batches, key=lambda number: batch_size(forwards.batches[number])))
    return list(filter(None, forwards.team.gather(found)))[:1]


def _note_selections(look: Watching, reports: Sequence[LayerReport]) -> list[Selection]:
    """Steps that pick rows by values of layers, also noted with the layers they reach."""
    selections = [replace(selection, reaches=tuple(layers))
                  for selection, layers in look.flow.selections.items()]
    for selection in selections:
        for report in reports:
            if report.name in selection.reaches:
                report.notes.append(f'gets what {selection} decides by values of layers; no replay '
                                    'point covers that')
    return selections


def _note_reads(look: Watching, reports: Sequence[LayerReport]) -> None:
    """Says of layers whose weight others read as well what they see."""
    for report in reports:
        if report.name in look.flow.also_read:
            report.notes.append(f"its weight or bias is read elsewhere (by '"
                                f"{look.flow.also_read[report.name]}'), dequantized")


def _seconds(stopwatch: Stopwatch, record: FloatRecord, total: float) -> dict[str, float]:
    """Where the time went; see ``QuantizationReport``."""
    parts = stopwatch.seconds
    sampling = parts['sampling'] - record.seconds_sampling  # in the quantized pass
    return {'float_forward': record.seconds_forward,
            'quantized_forward': parts['quantized_pass'] - parts['solve'] - sampling,
            **{name: parts[name] for name in (
                'watch', 'sampling', 'solve', 'solve_scales', 'solve_statistics', 'solve_codes')},
            **{name: parts[name] for name in ('importance', 'refine', 'tuning')
               if name in parts},
            'calibration': total}
