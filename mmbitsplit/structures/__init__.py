"""Frozen dataclasses that the other rooms exchange."""

from mmbitsplit.structures.geometry import LayerGeometry
from mmbitsplit.structures.given_plan import PlannedProduct, PlannedStream, PlanRow, PlanSpec
from mmbitsplit.structures.norms import FoldedNorm
from mmbitsplit.structures.options import Options, Range, from_mapping
from mmbitsplit.structures.plan import (
    BitPlan,
    EmbeddingPlan,
    FloatRemainder,
    LayerPlan,
    OutputPlan,
    Selection,
    StreamPlan,
)
from mmbitsplit.structures.plan_file import plan_text, plan_value, read_plan
from mmbitsplit.structures.products import (
    Log2Params,
    ProductInput,
    ProductPlan,
    ProductReport,
    ProductSolution,
    ProductSpec,
)
from mmbitsplit.structures.report import LayerReport, QuantizationReport, summary, width_summary
from mmbitsplit.structures.solution import LayerSolution, QParams, WeightSolution
from mmbitsplit.structures.spec import (
    ActivationSpec,
    CalibrationSpec,
    FirstLastSpec,
    OverrideSpec,
    QuantSpec,
    WeightSpec,
    merge,
)
from mmbitsplit.structures.statistics import LayerMeans, LayerStatistics, RowStatistics
from mmbitsplit.structures.units import Unit
from mmbitsplit.structures.widths import BudgetSpec, Widths, WidthTable

__all__ = [
    'ActivationSpec', 'BitPlan', 'BudgetSpec', 'CalibrationSpec', 'EmbeddingPlan',
    'FirstLastSpec', 'FloatRemainder', 'FoldedNorm', 'LayerGeometry', 'LayerMeans', 'LayerPlan',
    'LayerReport',
    'LayerSolution', 'LayerStatistics', 'Log2Params', 'Options', 'OutputPlan',
    'OverrideSpec',
    'PlanRow', 'PlanSpec', 'PlannedProduct', 'PlannedStream', 'ProductInput', 'ProductPlan',
    'ProductReport', 'ProductSolution', 'ProductSpec', 'QParams', 'QuantSpec',
    'QuantizationReport', 'Range', 'RowStatistics', 'Selection', 'StreamPlan', 'Unit',
    'WeightSolution', 'WeightSpec', 'WidthTable', 'Widths', 'from_mapping', 'merge',
    'plan_text', 'plan_value', 'read_plan', 'summary', 'width_summary',
]
