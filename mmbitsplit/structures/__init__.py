"""Frozen dataclasses that the other rooms exchange."""

from mmbitsplit.structures.geometry import LayerGeometry
from mmbitsplit.structures.options import Options, Range, from_mapping
from mmbitsplit.structures.plan import BitPlan, FloatRemainder, LayerPlan, OutputPlan, Selection
from mmbitsplit.structures.report import LayerReport, QuantizationReport, summary
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

__all__ = [
    'ActivationSpec', 'BitPlan', 'CalibrationSpec', 'FirstLastSpec', 'FloatRemainder',
    'LayerGeometry', 'LayerMeans', 'LayerPlan', 'LayerReport', 'LayerSolution', 'LayerStatistics',
    'Options', 'OutputPlan', 'OverrideSpec', 'QParams', 'QuantSpec', 'QuantizationReport', 'Range',
    'RowStatistics', 'Selection', 'Unit', 'WeightSolution', 'WeightSpec', 'from_mapping', 'merge',
    'summary',
]
