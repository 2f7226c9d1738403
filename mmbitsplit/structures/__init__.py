"""Frozen dataclasses that the other rooms exchange."""

from mmbitsplit.structures.layers import (
    BitPlan,
    FloatRemainder,
    LayerGeometry,
    LayerMeans,
    LayerPlan,
    LayerReport,
    LayerSolution,
    LayerStatistics,
    OutputPlan,
    QParams,
    QuantizationReport,
    RowStatistics,
    Selection,
    WeightSolution,
    summary,
)
from mmbitsplit.structures.options import Options, Range, from_mapping, nearest
from mmbitsplit.structures.spec import (
    ActivationSpec,
    CalibrationSpec,
    FirstLastSpec,
    OverrideSpec,
    QuantSpec,
    WeightSpec,
    merge,
)
from mmbitsplit.structures.units import Unit

__all__ = [
    'ActivationSpec', 'BitPlan', 'CalibrationSpec', 'FirstLastSpec', 'FloatRemainder',
    'LayerGeometry', 'LayerMeans', 'LayerPlan', 'LayerReport', 'LayerSolution', 'LayerStatistics',
    'Options', 'OutputPlan', 'OverrideSpec', 'QParams', 'QuantSpec', 'QuantizationReport', 'Range',
    'RowStatistics', 'Selection', 'Unit', 'WeightSolution', 'WeightSpec', 'from_mapping', 'merge',
    'nearest', 'summary',
]
