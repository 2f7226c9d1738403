"""Layers that are solved: written into the model, kept in the journal, reported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmbitsplit.calibration.journal import Journal, JournalEntry
from mmbitsplit.functional import ActivationSamples
from mmbitsplit.models import PreparedModel, QuantizedLayer, apply
from mmbitsplit.solving.solve_layer import Solved
from mmbitsplit.structures import LayerPlan, LayerReport, Unit, summary


@dataclass(frozen=True)
class Progress:
    """One step of the calibration, for whoever shows it.

    Args:
        stage: ``'importance'`` (batches forward and backward through the float model, where
            somebody asks for that), ``'float'`` (batches through it), ``'layers'``, ``'unit'``
            (steps in which a unit is learned, told now and then), ``'refine'`` (losses of the
            whole model) or ``'tuning'`` (steps of a stage that tunes the whole model).
        done, total: Steps of the stage; a total of 0 is not known.
        layer: Report of the layer just solved, in stage ``'layers'``.
        unit: Name of the unit that is learned; of these, ``units_done`` of ``units`` are done.
        seconds_left: Of learning this and all other units, guessed from those that are done.
    """

    stage: str
    done: int
    total: int
    layer: LayerReport | None = None
    unit: str | None = None
    units_done: int = 0
    units: int = 0
    seconds_left: float | None = None


@dataclass
class SolvedLayers:
    """What has been solved so far.

    Args:
        prepared: The model.
        units: That its layers belong to.
        journal: Keeps what is solved; ``None`` keeps nothing.
        progress: Told every layer.
        reports: A row a layer, in the order they were solved.
        samples: Of the inputs of layers, where the method needs them later.
    """

    prepared: PreparedModel
    units: Sequence[Unit]
    journal: Journal | None
    progress: Callable[[Progress], None]
    reports: list[LayerReport] = field(default_factory=list)
    samples: dict[str, ActivationSamples] = field(default_factory=dict)

    def take_over(self, entry: JournalEntry) -> None:
        """Writes a layer that an interrupted calibration has solved."""
        apply(self.prepared.layers[entry.name], entry.solution)
        self._report(entry.report, entry.samples)

    def add(self, plan: LayerPlan, solved: Solved, seconds: float,
            samples: ActivationSamples | None = None) -> None:
        """Writes a layer that has just been solved.

        Args:
            plan: Of the layer.
            solved: Its solution.
            seconds: That it took.
            samples: Of its inputs, where the method needs them later.
        """
        layer = self.prepared.layers[plan.name]
        apply(layer, solved.solution)
        report = layer_report(layer, plan, solved, seconds)
        self._keep(JournalEntry(plan.name, solved.solution, report, samples))

    def in_order(self) -> list[LayerReport]:
        """Reports in the order of the plan: towers side by side are solved in either."""
        reports = {report.name: report for report in self.reports}
        return [reports[plan.name] for plan in self.prepared.plan.layers]

    def check_complete(self) -> None:
        """Raises ``ValueError`` for planned layers that the passes never reached."""
        missing = [name for name, layer in self.prepared.layers.items() if not layer.quantized]
        if missing:
            raise ValueError(f'{len(missing)} layer(s) were not solved: {", ".join(missing[:5])}.'
                             ' The calibration images do not reach them; use others, or leave '
                             'them in float with an override (skip=True).')

    def _keep(self, entry: JournalEntry) -> None:
        if self.journal is not None:
            self.journal.append(entry)
        self._report(entry.report, entry.samples)

    def _report(self, report: LayerReport, samples: ActivationSamples | None) -> None:
        report.unit = next((unit.name for unit in self.units if report.name in unit.layers), None)
        self.reports.append(report)
        if samples is not None:
            self.samples[report.name] = samples
        self.progress(Progress('layers', len(self.reports), len(self.prepared.layers), report))


def layer_report(layer: QuantizedLayer, plan: LayerPlan, solved: Solved, seconds: float,
                 ) -> LayerReport:
    """The row of ``layers.json`` of a layer that has been solved."""
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
