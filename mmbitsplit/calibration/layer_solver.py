"""Solves a layer when the lockstep pass has its inputs, writes it and reports it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmbitsplit.calibration.journal import Journal, JournalEntry
from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel, apply
from mmbitsplit.passes.capture import CallCapture, merge_samples
from mmbitsplit.passes.float_pass import FloatRecord, check_finite
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.data_free import solve_from_weights
from mmbitsplit.solving.solve_layer import Solved, solve_layer
from mmbitsplit.solving.solved_model import KeptModel
from mmbitsplit.structures import LayerPlan, LayerReport, Unit, summary


@dataclass(frozen=True)
class Progress:
    """One step of the calibration, for whoever shows it.

    Args:
        stage: ``'float'`` (batches through the float model) or ``'layers'``.
        done, total: Steps of the stage.
        layer: Report of the layer just solved, in the second stage.
    """

    stage: str
    done: int
    total: int
    layer: LayerReport | None = None


class LayerSolver:
    """Called by the lockstep pass, layer after layer.

    Args:
        prepared: The model.
        record: Of the float pass.
        method: Chooses the codes.
        labels: What each batch is called in error messages, by its number.
        team: Who calibrates together.
        journal: Keeps what is solved; ``None`` keeps nothing.
        stopwatch: Told what solving takes.
        progress: Told every layer.
        refinement: Told every layer before it is solved, for a method that refines the model.
        units: Of the model, for the reports.
    """

    def __init__(self, prepared: PreparedModel, record: FloatRecord, method: Method,
                 labels: Mapping[int, str], team: Team, journal: Journal | None,
                 stopwatch: Stopwatch, progress: Callable[[Progress], None],
                 refinement: KeptModel | None = None, units: Sequence[Unit] = ()):
        self.prepared, self.record, self.method, self.team = prepared, record, method, team
        self.labels, self.journal = labels, journal
        self.stopwatch, self.progress, self.refinement = stopwatch, progress, refinement
        self.plans: dict[str, LayerPlan] = {plan.name: plan for plan in prepared.plan.layers}
        self.unit_of = {layer: unit.name for unit in units for layer in unit.layers}
        self.reports: list[LayerReport] = []

    def take_over(self, entries: list[JournalEntry]) -> None:
        """Writes layers that an interrupted calibration has solved."""
        for entry in entries:
            apply(self.prepared.layers[entry.name], entry.solution)
            self._tell(entry.report)

    def __call__(self, name: str, offers: dict[int, list[CallCapture]]) -> None:
        """Solves a layer from this process's captures of it, by batch."""
        with self.stopwatch('solve'):
            self._solve(name, offers)

    def _solve(self, name: str, offers: dict[int, list[CallCapture]]) -> None:
        started = time.perf_counter()
        captures, targets = self._align(name, offers)
        layer, plan = self.prepared.layers[name], self.plans[name]
        if not self.team.total(sum(target.shape[-1] for target in targets)):
            raise ValueError(f"Layer '{name}' saw no input position on any calibration image "
                             '(no detections?); use other images, or leave it in float with '
                             f"overrides=[dict(match='{name}', skip=True)].")
        if self.refinement is not None:
            self.refinement.remember(plan, layer, merge_samples(captures, self.team))
        solved = solve_layer(layer, plan, self.method, captures, targets, self.team,
                             self.stopwatch)
        if self.refinement is not None:
            kept = self.refinement.layers[name]
            kept.strength, kept.output_qparams = solved.strength, solved.solution.output_qparams
        self._write(plan, solved, started)

    def solve_without_images(self) -> None:
        """Solves all layers from their weights alone."""
        with self.stopwatch('solve'):
            for name, plan in self.plans.items():
                started = time.perf_counter()
                if not self.prepared.layers[name].quantized:  # taken over
                    solved = solve_from_weights(self.prepared.layers[name], plan, self.method)
                    self._write(plan, solved, started)

    def _write(self, plan: LayerPlan, solved: Solved, started: float) -> None:
        layer = self.prepared.layers[plan.name]
        apply(layer, solved.solution)
        report = _report(layer, plan, solved, time.perf_counter() - started)
        if self.journal is not None:
            self.journal.append(JournalEntry(plan.name, solved.solution, report))
        self._tell(report)

    def refine(self) -> dict[str, Any]:
        """Lets the method improve the whole model; returns what it says of that."""
        with self.stopwatch('solve'):
            story = self.method.refine(self.refinement)
        for report in self.reports:
            layer = self.prepared.layers[report.name]
            report.weight_scale = summary(layer.weight_scale)
            if layer.qparams is not None:
                report.activation_scale = summary(layer.qparams.scale)
            report.notes.append('scales were changed with those of other layers afterwards; the '
                                'error is that before')
        return story

    def _tell(self, report: LayerReport) -> None:
        report.unit = self.unit_of.get(report.name)
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


def _report(layer, plan: LayerPlan, solved: Solved, seconds: float) -> LayerReport:
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
        guard_taken=solved.guard_taken, calls=solved.calls, rows=solved.rows, seconds=seconds,
        output_bits=None if plan.output is None else plan.output.num_bits,
        input_ranges=solved.input_ranges, scale_search=solved.search,
        candidates=dict(solved.candidates), notes=list(solved.notes))
