"""Calibrates a model: looks at it, prepares it, and solves its layers in lockstep."""

import functools
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmbitsplit.calibration.capture import CallCapture, Sampler
from mmbitsplit.calibration.float_pass import FloatRecord, check_finite, float_pass
from mmbitsplit.calibration.lockstep import Lockstep
from mmbitsplit.calibration.methods import build_method
from mmbitsplit.calibration.replay import ReplayPoint, Tape, barrier, recording, replaying
from mmbitsplit.calibration.shared import find_owners
from mmbitsplit.calibration.solve_layer import Solved, solve_layer
from mmbitsplit.models import DataFlow, PreparedModel, apply, layer_kind, prepare, watch
from mmbitsplit.structures import LayerPlan, LayerReport, QuantizationReport, QuantSpec, summary


@dataclass(frozen=True)
class Progress:
    """One step of the calibration, for whoever shows it.

    Args:
        stage: ``'float'`` (images through the float model) or ``'layers'``.
        done, total: Steps of the stage.
        layer: Report of the layer just solved, in the second stage.
    """

    stage: str
    done: int
    total: int
    layer: LayerReport | None = None


def calibrate(model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
              run: Callable[[nn.Module, Any], Any],
              replay_points: Sequence[ReplayPoint] = (),
              labels: Sequence[str] | None = None,
              progress: Callable[[Progress], None] = lambda step: None,
              ) -> tuple[PreparedModel, QuantizationReport]:
    """Quantizes a model in place: two forwards a batch, layer after layer.

    Args:
        model: Float model; put into eval mode.
        batches: Calibration batches, at least one; all are kept in memory.
        spec: The request.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: Calls whose results are recorded in the float pass and replayed.
        labels: What each batch is called in error messages.
        progress: Told every step.

    Returns:
        The prepared model, every planned layer quantized, and the report.

    Raises:
        ValueError: No batches, an unknown method or option, activations that are not finite, a
            layer that is never reached, overrides or a scope that match nothing.
    """
    if not len(batches):
        raise ValueError('The calibration set is empty; at least one batch of images is needed.')
    method = build_method(spec.method)
    labels = labels or [f'batch {index}' for index in range(len(batches))]
    started = time.perf_counter()
    model.eval()
    flow = _watch(model, batches, run, replay_points)
    prepared = prepare(model, flow, spec)
    calls = {name: flow.calls[name] for name in prepared.layers}
    sampler = Sampler(spec.calibration, len(batches), calls)
    tape, current = Tape(), {'batch': 0}
    with recording(replay_points, tape, lambda: current['batch']):
        record = float_pass(
            prepared, batches, lambda batch: run(model, batch), sampler, labels,
            enter=lambda batch: current.update(batch=batch),
            progress=lambda done, total: progress(Progress('float', done, total)))
    solver = _Solver(prepared, record, method, labels, progress)
    lockstep = Lockstep(prepared, batches, lambda batch: run(model, batch), record.counts,
                        find_owners(flow, set(prepared.layers)), sampler, tape, solver)
    with replaying(replay_points, tape, lockstep.current_batch):
        lockstep.run()
    solver.check_complete()
    report = QuantizationReport(
        layers=solver.reports, kept_float=list(prepared.plan.kept_float),
        folded_batch_norms=sorted(prepared.folded),
        seconds={'float_forward': record.seconds_forward, 'capture': record.seconds_capture,
                 'solve': solver.seconds, 'calibration': time.perf_counter() - started},
        calibration={'num_batches': len(batches), 'seed': spec.calibration.seed},
        method=dict(spec.method),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return prepared, report


def _watch(model: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], Any],
           replay_points: Sequence[ReplayPoint]) -> DataFlow:
    """Looks at batches until one reaches every layer; keeps the one that reaches most."""
    wanted = sum(layer_kind(module) is not None for module in model.modules())
    best: DataFlow | None = None
    for batch in batches:
        flow = watch(model, functools.partial(run, model, batch), barriers=[barrier(replay_points)])
        if best is None or len(flow.order) > len(best.order):
            best = flow
        if len(best.order) == wanted:
            break
    return best


class _Solver:
    """Solves a layer when the lockstep pass has its inputs, and reports it."""

    def __init__(self, prepared: PreparedModel, record: FloatRecord, method, labels,
                 progress: Callable[[Progress], None]):
        self.prepared, self.record, self.method = prepared, record, method
        self.labels, self.progress = labels, progress
        self.plans: dict[str, LayerPlan] = {plan.name: plan for plan in prepared.plan.layers}
        self.reports: list[LayerReport] = []
        self.seconds = 0.0

    def __call__(self, name: str, offers: dict[int, list[CallCapture]]) -> None:
        started = time.perf_counter()
        captures, targets = self._align(name, offers)
        layer, plan = self.prepared.layers[name], self.plans[name]
        if not sum(target.shape[-1] for target in targets):
            raise ValueError(f"Layer '{name}' saw no input position on any calibration image "
                             '(no detections?); use other images, or leave it in float with '
                             f"overrides=[dict(match='{name}', skip=True)].")
        solved = solve_layer(layer, plan, self.method, captures, targets)
        apply(layer, solved.solution)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        report = _report(layer, plan, solved, captures, seconds)
        self.reports.append(report)
        self.progress(Progress('layers', len(self.reports), len(self.plans), report))

    def _align(self, name: str, offers: dict[int, list[CallCapture]],
               ) -> tuple[list[CallCapture], list[Tensor]]:
        """Pairs the calls of both passes, batch by batch."""
        captures, targets = [], []
        for batch in sorted(offers):
            wanted = self.record.targets.pop((name, batch))
            # Whole shapes: of inputs of different sizes equally many positions may be sampled.
            if [capture.shape for capture in offers[batch]] != self.record.shapes[name, batch]:
                raise RuntimeError(
                    f"Layer '{name}' on {self.labels[batch]}: the two passes see inputs of "
                    'different sizes. A step whose result depends on the data comes before; '
                    'name it as a replay point.')
            for capture in offers[batch]:
                check_finite(name, capture.patches, self.labels[batch], 'quantized')
            captures += offers[batch]
            targets += wanted
        return captures, targets

    def check_complete(self) -> None:
        """Raises ``ValueError`` for planned layers that the passes never reached."""
        missing = [name for name in self.plans if not self.prepared.layers[name].quantized]
        if missing:
            raise ValueError(f'{len(missing)} layer(s) were not solved: {", ".join(missing[:5])}.'
                             ' The calibration images do not reach them; use others, or leave '
                             'them in float with an override (skip=True).')


def _report(layer, plan: LayerPlan, solved: Solved, captures: list[CallCapture],
            seconds: float) -> LayerReport:
    qparams = solved.solution.qparams
    symmetry = None
    if qparams is not None:
        symmetry = 'asymmetric' if bool((qparams.zero_point != 0).any()) else \
            'signed' if qparams.quant_min < 0 else 'unsigned'
    return LayerReport(
        name=plan.name, kind=layer.geometry.kind, shape=tuple(layer.geometry.weight_shape),
        role=plan.role, weight_bits=plan.weight.num_bits,
        activation_bits=plan.activation.num_bits,
        activation_mode=plan.activation.mode if qparams is not None else None,
        activation_symmetry=symmetry, strength=solved.strength,
        weight_scale=summary(solved.solution.weight_scale),
        activation_scale=None if qparams is None else summary(qparams.scale),
        error_rounding=solved.error_rounding, error=solved.error, sweeps=solved.sweeps,
        guard_taken=solved.guard_taken, calls=len(captures),
        rows=sum(capture.patches.shape[-1] for capture in captures), seconds=seconds)
