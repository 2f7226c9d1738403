"""A given plan, as ``quantization.plan`` and ``plan.json`` say it: widths layer by layer."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmbitsplit.spelling import nearest
from mmbitsplit.structures.options import Options
from mmbitsplit.structures.widths import Bits

AS_REQUESTED: Literal['request'] = 'request'
PlannedBits = Bits | None | Literal['request']
PLAN_FORMAT = 1
# What of a request a plan says a layer; the rest (placement and its bits, reduce_range) is what
# plans are made by.
PLAN_SETTINGS = {
    'weight': ('scale_search',),
    'activation': ('mode', 'symmetry', 'scale_search', 'strength', 'norm', 'bit_allocation')}


@dataclass(frozen=True)
class PlanRow(Options):
    """What one layer of a given plan gets; what is left out is as the request says.

    Args:
        name: The layer's dotted name.
        weight_bits: Width of a weight code; ``None`` leaves the whole layer in float.
        input_bits: Width of an input code; ``None`` leaves the input in float.
        output_bits: Width of an output code; ``None`` leaves the output in float.
        weight: Keys of ``quantization.weight`` to replace: ``scale_search``.
        activation: Keys of ``quantization.activation`` to replace: ``mode``, ``symmetry``,
            ``scale_search``, ``strength``, ``norm``, ``bit_allocation``.
        role: Of the layer, for readers of the file; nothing follows from it.
    """

    name: str
    weight_bits: PlannedBits = AS_REQUESTED
    input_bits: PlannedBits = AS_REQUESTED
    output_bits: PlannedBits = AS_REQUESTED
    weight: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=dict)
    role: str = ''

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_settings(self)


@dataclass(frozen=True)
class PlannedStream(Options):
    """What a module of a given plan gives, where a layer and something else read it.

    Args:
        name: The module's dotted name.
        num_bits: Width of a code; ``None`` leaves it in float.
    """

    name: str
    num_bits: Bits | None


@dataclass(frozen=True)
class PlannedProduct(Options):
    """What one product of activations, ``a @ b``, of a given plan gets.

    Args:
        name: Its dotted name.
        a_bits, b_bits: Widths of the codes of its inputs; ``None`` leaves that one in float.
    """

    name: str
    a_bits: Bits | None
    b_bits: Bits | None


@dataclass(frozen=True)
class PlanSpec(Options):
    """A given plan: widths layer by layer, which win over those of the request and its overrides.

    Args:
        layers: A row a layer, in any order. Layers without one get what the request says.
        weight, activation: What layers with a row have in common; rows win.
        streams: Quantized residual streams, in any order; those left out are as the request says.
        products: Products of activations, likewise.
        format: Version of this layout.
    """

    layers: tuple[PlanRow, ...]
    weight: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=dict)
    streams: tuple[PlannedStream, ...] = ()
    products: tuple[PlannedProduct, ...] = ()
    format: int = PLAN_FORMAT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != PLAN_FORMAT:
            raise ValueError(f'format={self.format} of a plan is not known; this version reads '
                             f'{PLAN_FORMAT}. Install a newer mmbitsplit, or make the plan again.')
        _check_settings(self)
        names = [row.name for row in self.layers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"The plan has {names.count(name)} rows of layer '{name}'; "
                                 'leave one.')

    @functools.cached_property
    def rows(self) -> dict[str, PlanRow]:
        """Rows by name, each with what all have in common."""
        return {row.name: replace(row, weight={**self.weight, **row.weight},
                                  activation={**self.activation, **row.activation})
                for row in self.layers}


def _check_settings(part: PlanRow | PlanSpec) -> None:
    for name, known in PLAN_SETTINGS.items():
        for key in getattr(part, name):
            if key not in known:
                raise ValueError(f"Unknown key '{key}' in {name} of a plan: "
                                 f'{nearest(key, known)}. Widths stand in the rows: weight_bits, '
                                 'input_bits, output_bits.')
