"""Layers that are solved: written into the model, kept in the journal, reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mmbitsplit.calibration.journal import Journal, JournalEntry, ProductEntry
from mmbitsplit.functional import ActivationSamples
from mmbitsplit.models import PreparedModel, QuantizedLayer, apply
from mmbitsplit.models.surgery.embedding import quantize_embedding
from mmbitsplit.models.watch.product_calls import ProductCalls
from mmbitsplit.solving.solve_layer import Solved
from mmbitsplit.solving.solve_product import SolvedProduct
from mmbitsplit.structures import (
    EmbeddingPlan,
    LayerPlan,
    LayerReport,
    Log2Params,
    ProductPlan,
    ProductReport,
    QParams,
    Unit,
    summary,
)


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
        tables: A row an embedding.
        samples: Of the inputs of layers, where the method needs them later.
        products: A row a product of activations, likewise.
        calls: What was seen of each product.
        shares: Of all multiplications, that each layer and product makes.
    """

    prepared: PreparedModel
    units: Sequence[Unit]
    journal: Journal | None
    progress: Callable[[Progress], None]
    reports: list[LayerReport] = field(default_factory=list)
    tables: list[LayerReport] = field(default_factory=list)
    samples: dict[str, ActivationSamples] = field(default_factory=dict)
    products: list[ProductReport] = field(default_factory=list)
    calls: Mapping[str, ProductCalls] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    def take_over(self, entry: JournalEntry | ProductEntry) -> None:
        """Writes a layer or product that an interrupted calibration has solved."""
        if isinstance(entry, ProductEntry):
            self._install(entry)
            return
        if entry.name in self.prepared.embeddings:
            quantize_embedding(self.prepared.embeddings[entry.name], entry.solution)
        else:
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

    def add_embedding(self, plan: EmbeddingPlan, solved: Solved, seconds: float) -> None:
        """Writes an embedding whose rows have just been rounded; it belongs to no unit.

        Args:
            plan: Of the embedding.
            solved: Its solution.
            seconds: That it took.
        """
        quantize_embedding(self.prepared.embeddings[plan.name], solved.solution)
        report = embedding_report(plan, solved, seconds)
        SolvedLayers._keep(self, JournalEntry(plan.name, solved.solution, report))

    def add_product(self, plan: ProductPlan, solved: SolvedProduct, seconds: float) -> None:
        """Writes a product that has just been solved, as ``add`` does a layer."""
        report = product_report(plan, solved, seconds, self.calls[plan.name],
                                self.shares[plan.name])
        entry = ProductEntry(plan.name, solved.solution, report)
        if self.journal is not None:
            self.journal.append(entry)
        self._install(entry)

    def _install(self, entry: ProductEntry) -> None:
        device = next((value.device for value in self.prepared.model.parameters()), None)
        self.prepared.products[entry.name].install(entry.solution, device)
        self.products.append(entry.report)

    def products_in_order(self) -> list[ProductReport]:
        """Reports of products in the order of the plan."""
        reports = {report.name: report for report in self.products}
        return [reports[plan.name] for plan in self.prepared.plan.products]

    def in_order(self) -> list[LayerReport]:
        """Reports in the order of the plan: towers side by side are solved in either."""
        reports = {report.name: report for report in (*self.tables, *self.reports)}
        return [reports[plan.name] for plan in (*self.prepared.plan.embeddings,
                                                *self.prepared.plan.layers)]

    def check_complete(self) -> None:
        """Raises ``ValueError`` for planned layers and products that the passes never reached."""
        missing = [name for name, site in self.prepared.sites.items() if not site.quantized]
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
        (self.tables if report.name in self.prepared.embeddings else self.reports).append(report)
        if samples is not None:
            self.samples[report.name] = samples
        done, all_of_them = len(self.reports) + len(self.tables), \
            len(self.prepared.layers) + len(self.prepared.embeddings)
        self.progress(Progress('layers', done, all_of_them, report))


def product_report(plan: ProductPlan, solved: SolvedProduct, seconds: float, calls: ProductCalls,
                   share: float) -> ProductReport:
    """The row of ``layers.json`` of a product that has been solved.

    Args:
        plan, solved: Of the product.
        seconds: That it took.
        calls: What was seen of it.
        share: Of all multiplications.
    """
    asked = [one for _, one in plan.sides()]
    params = [getattr(solved.solution, side) for side, _ in plan.sides()]
    notes = ['powers of two, which no runtime computes in integers'] \
        if any(isinstance(one, Log2Params) for one in params) else []
    notes += [f"error at {one['activation_bits']} bits {one['error']:.4g} "
              f"(whole ranges {one['error_minmax']:.4g})" for one in solved.width_errors]
    return ProductReport(
        name=plan.name, shapes=calls.shapes[0], bits=(asked[0].num_bits, asked[1].num_bits),
        symmetry=(_symmetry(params[0]), _symmetry(params[1])),
        granularity=(asked[0].granularity, asked[1].granularity),
        softmax=(asked[0].softmax is not None, asked[1].softmax is not None),
        scales=(_scales(params[0]), _scales(params[1])), scale_search=solved.searches,
        error=solved.error, error_minmax=solved.error_minmax, multiplications=share,
        calls=solved.calls, seconds=seconds, notes=notes,
        width_errors=[dict(one) for one in solved.width_errors])


def _scales(params: QParams | Log2Params | None) -> tuple[float, float] | None:
    return summary(params.scale) if isinstance(params, QParams) else None


def _symmetry(params: QParams | Log2Params | None) -> str | None:
    if not isinstance(params, QParams):
        return None if params is None else 'log2'
    return 'asymmetric' if bool((params.zero_point != 0).any()) else \
        'signed' if params.quant_min < 0 else 'unsigned'


def layer_report(layer: QuantizedLayer, plan: LayerPlan, solved: Solved, seconds: float,
                 ) -> LayerReport:
    """The row of ``layers.json`` of a layer that has been solved."""
    qparams = solved.solution.qparams
    return LayerReport(
        name=plan.name, kind=layer.geometry.kind, shape=tuple(layer.geometry.weight_shape),
        role=plan.role, weight_bits=plan.weight.num_bits,
        activation_bits=plan.activation.num_bits,
        activation_mode=plan.activation.mode if qparams is not None else None,
        activation_symmetry=_symmetry(qparams), strength=solved.strength,
        weight_scale=summary(solved.solution.weight_scale),
        activation_scale=None if qparams is None else summary(qparams.scale),
        error_rounding=solved.error_rounding, error=solved.error, sweeps=solved.sweeps,
        guard_taken=solved.guard_taken, calls=solved.calls, rows=solved.rows, seconds=seconds,
        output_bits=None if plan.output is None else plan.output.num_bits,
        input_ranges=solved.input_ranges, scale_search=solved.search,
        candidates=dict(solved.candidates), notes=list(solved.notes),
        width_errors=[dict(one) for one in solved.width_errors])


def embedding_report(plan: EmbeddingPlan, solved: Solved, seconds: float) -> LayerReport:
    """The row of ``layers.json`` of an embedding that has been solved."""
    return LayerReport(
        name=plan.name, kind='embedding', shape=tuple(solved.solution.codes.shape),
        role=plan.role, weight_bits=plan.weight.num_bits, activation_bits=None,
        activation_mode=None, activation_symmetry=None, strength=None,
        weight_scale=summary(solved.solution.weight_scale), activation_scale=None,
        error_rounding=solved.error_rounding, error=solved.error, sweeps=0, guard_taken=False,
        calls=0, rows=0, seconds=seconds, notes=list(solved.notes))
