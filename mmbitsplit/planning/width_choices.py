"""Which widths a budget may give each layer, uniform plans, and plans as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mmbitsplit.methods import build_method
from mmbitsplit.structures import BitPlan, LayerPlan, PlanRow, PlanSpec, QuantSpec, Widths
from mmbitsplit.structures.given_plan import AS_REQUESTED
from mmbitsplit.structures.spec import REDUCED_BITS

WidthPlan = Mapping[str, Widths]
PROBES = (2, 3)  # widths of two requests: what differs between their plans follows the request


def width_choices(make: Callable[[QuantSpec], BitPlan], spec: QuantSpec,
                  ) -> dict[str, tuple[Widths, ...]]:
    """Returns what each planned layer may have, in the order of execution.

    A width that does not follow the request's is fixed: by an override, by the rule of first and
    last layers or by a placement that stands for a paper. Float inputs stay float.

    Args:
        make: The plan of a request, ``make_plan`` of a watched model.
        spec: The request, with a budget.

    Returns:
        By name, widths in rising order; one choice where the layer keeps what it has.

    Raises:
        ValueError: All widths are fixed.
    """
    budget = spec.budget
    assert budget is not None
    asked = replace(spec, budget=None)
    low, high = (make(_with_bits(asked, bits)).layers for bits in PROBES)
    choices = {}
    free = 0
    for layer, first, second in zip(make(asked).layers, low, high, strict=True):
        weight_free = first.weight.num_bits != second.weight.num_bits
        input_free = budget.activation_widths is not None \
            and first.activation.num_bits != second.activation.num_bits
        free += weight_free or input_free
        weights = _weights(layer, budget.widths) if weight_free else (layer.weight.num_bits,)
        choices[layer.name] = tuple(sorted({
            Widths(weight, activation) for weight in weights
            for activation in _inputs(weight, budget.activation_widths if input_free else None)}))
    if not free:
        raise ValueError('quantization.budget has no layer to choose widths for: overrides and '
                         f'the rule of first and last layers give all {len(choices)} layers '
                         'theirs. Take num_bits out of some overrides, or set '
                         'first_last=dict(weight_bits=None).')
    return choices


def uniform_plans(choices: Mapping[str, Sequence[Widths]], every: Sequence[Widths],
                  ) -> dict[Widths, dict[str, Widths]]:
    """Returns the plans that give all layers the same, but those whose widths are fixed.

    Args:
        choices: From ``width_choices``.
        every: What layers may have, ``BudgetSpec.choices()``.
    """
    return {wanted: {name: min(own, key=lambda widths: (
        abs(widths.weight - wanted.weight),
        abs((widths.activation or 0) - (wanted.activation or 0)))) for name, own in choices.items()}
        for wanted in every}


def plan_of(widths: WidthPlan) -> PlanSpec:
    """Returns chosen widths as a plan that can be given; inputs not chosen are as requested."""
    return PlanSpec(tuple(
        PlanRow(name, own.weight, AS_REQUESTED if own.activation is None else own.activation)
        for name, own in widths.items()))


def with_widths(spec: QuantSpec, widths: WidthPlan) -> QuantSpec:
    """Returns the request that a plan was chosen for, with the plan in the budget's place.

    Stages that the method brought for what the budget might choose are those that it has for the
    plan; what the request itself says of tuning stands.
    """
    asked, method = replace(spec, budget=None, plan=plan_of(widths)), build_method(spec.method)
    if spec.budget is None or not spec.tuning or spec.tuning != tuple(method.tuning(spec)):
        return asked
    return replace(asked, tuning=tuple(method.tuning(asked)))


def _with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    activation = spec.activation if spec.activation.num_bits is None \
        else replace(spec.activation, num_bits=bits)
    return replace(spec, weight=replace(spec.weight, num_bits=bits), activation=activation)


def _weights(layer: LayerPlan, widths: Sequence[int]) -> Sequence[int]:
    reduced = layer.weight.reduce_range is True and layer.activation.num_bits is not None
    return [min(bits, REDUCED_BITS) for bits in widths] if reduced else widths


def _inputs(weight: int, asked: object) -> Sequence[int | None]:
    if asked is None:
        return (None,)
    return (weight,) if asked == 'tied' else asked  # type: ignore[return-value]
