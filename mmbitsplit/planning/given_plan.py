"""A given plan over a request: its widths and settings win, layer by layer."""

from dataclasses import replace

from torch import nn

from mmbitsplit.models.layers.geometry import takes_codes
from mmbitsplit.models.opening import may_be_opened
from mmbitsplit.planning.first_and_last import reduced_range
from mmbitsplit.spelling import close_names, nearest
from mmbitsplit.structures import (
    FloatRemainder,
    LayerPlan,
    PlanRow,
    QuantSpec,
    merge,
)
from mmbitsplit.structures.given_plan import AS_REQUESTED

IN_FLOAT_BY_PLAN = 'left in float by the plan'
_MOST_NAMED = 4


def row_of(name: str, spec: QuantSpec) -> PlanRow | None:
    """The row of a layer in the given plan, ``None`` where there is none."""
    return None if spec.plan is None else spec.plan.rows.get(name)


def given_in_float(name: str, spec: QuantSpec) -> bool | None:
    """Whether the given plan leaves a layer in float; ``None`` where it does not say."""
    row = row_of(name, spec)
    return None if row is None or row.weight_bits == AS_REQUESTED else row.weight_bits is None


def with_given(layer: LayerPlan, spec: QuantSpec) -> LayerPlan:
    """Puts the given plan's row over what the request says of a layer, outputs excepted.

    ``WeightSpec.reduce_range`` takes a bit of widths that the request gave, of no other.
    """
    row, weight, activation = row_of(layer.name, spec), layer.weight, layer.activation
    if row is not None:
        where = f"quantization.plan, layer '{layer.name}'"
        activation = merge(activation, row.activation, f'{where}, activation')
        weight = merge(weight, row.weight, f'{where}, weight')
        if row.input_bits != AS_REQUESTED:
            activation = replace(activation, num_bits=row.input_bits)
    if row is not None and row.weight_bits != AS_REQUESTED:
        weight = replace(weight, num_bits=row.weight_bits)
    else:
        weight = reduced_range(weight, activation, layer.role, spec)
    return replace(layer, weight=weight, activation=activation)


def check_given_names(model: nn.Module, spec: QuantSpec, opened: bool = True) -> None:
    """Raises ``ValueError`` where the given plan has rows of layers that the model has not.

    Args:
        model: Float model.
        spec: The request.
        opened: Whether its calls are opened; if not, names of what that may put in are let pass.
    """
    if spec.plan is None:
        return
    modules = dict(model.named_modules())
    layers = [name for name, module in modules.items() if takes_codes(module)]
    unknown = [name for name in spec.plan.rows if name not in set(layers)
               and not (not opened and may_be_opened(name)
                        and name.rpartition('.')[0] in modules)]
    if unknown:
        near = close_names(unknown[0], layers, alike=0.5) or layers[:_MOST_NAMED]
        more = [f"'{name}'" for name in unknown[1:_MOST_NAMED]]
        raise ValueError(
            f"quantization.plan names layers that the model does not have, {len(unknown)} of "
            f"{len(spec.plan.rows)}: '{unknown[0]}' ({nearest(unknown[0], near)}, ...)"
            f'{"".join(f", {name}" for name in more)}'
            f'{", ..." if len(unknown) > _MOST_NAMED else ""}. Give the plan of this model, or '
            'take these rows out.')


def check_given(spec: QuantSpec, kept: list[FloatRemainder]) -> None:
    """Raises ``ValueError`` where the given plan quantizes what can or shall only stay in float.

    Args:
        spec: The request.
        kept: What stays float, and why.
    """
    for part in kept:
        row = row_of(part.name, spec)
        if row is not None and row.weight_bits is not None:
            step = 'Give its weight_bits a width of its own' if part.requested \
                else 'Set its weight_bits to null'
            raise ValueError(f"quantization.plan has a row of layer '{part.name}', which stays "
                             f'in float: {part.reason}. {step}, or take the row out.')
