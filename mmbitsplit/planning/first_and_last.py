"""The rule of first and last layers: 8 bits, and the image itself stays float.

Which layers they are is seen while the model is watched: ``models.watch.roles``. What they get is
``FirstLastSpec``.
"""

from dataclasses import replace

from mmbitsplit.structures import ActivationSpec, QuantSpec, WeightSpec
from mmbitsplit.structures.spec import REDUCED_BITS

PAPER_BITS = 8  # of what papers leave wider than the rest


def settings_of_role(role: str, spec: QuantSpec, reads_first: bool = False,
                     ) -> tuple[WeightSpec, ActivationSpec]:
    """What a request gives to layers of a role, before overrides and plans.

    Args:
        role: ``'first'``, ``'last'``, ``'first+last'`` or ``'inner'``.
        spec: The request.
        reads_first: Whether the layer's input comes from first layers alone.
    """
    weight, activation = spec.weight, spec.activation
    placement, quantized = activation.placement, activation.num_bits is not None
    if role != 'inner':
        if spec.first_last.weight_bits is not None:
            weight = replace(weight, num_bits=spec.first_last.weight_bits)
        if quantized:  # weights only: nothing is quantized anywhere
            activation = replace(activation, num_bits=spec.first_last.activation_bits)
    if 'first' in role:  # the image itself is not quantized, but by CalibTIP
        image_bits = PAPER_BITS if quantized and placement == 'calibtip' else None
        activation = replace(activation, num_bits=image_bits)
    elif reads_first and quantized and placement == 'brecq':
        activation = replace(activation, num_bits=PAPER_BITS)
    return weight, activation


def reduced_range(weight: WeightSpec, activation: ActivationSpec, role: str, spec: QuantSpec,
                  ) -> WeightSpec:
    """Takes the last bit where ``WeightSpec.reduce_range`` says so.

    Args:
        weight, activation: Settings of a layer; with float inputs it is computed in float.
        role: Of the layer.
        spec: The request.
    """
    if activation.num_bits is None:
        return weight
    reduce = weight.reduce_range
    if reduce == 'auto':
        reduce = (role != 'inner' and activation.placement == 'deploy'
                  and spec.weight.num_bits <= REDUCED_BITS)
    return replace(weight, num_bits=min(weight.num_bits, REDUCED_BITS)) if reduce else weight


def is_uniform(layers: list[tuple[str, int, int | None]], spec: QuantSpec) -> bool:
    """Whether every layer has the widths that a request gives to all layers of its role.

    Args:
        layers: Role, weight bits and input bits of each layer.
        spec: The request; its overrides and its plan are what may make layers differ.
    """
    for role, weight_bits, input_bits in layers:
        allowed = set()
        for reads_first in (False, True):
            weight, activation = settings_of_role(role, spec, reads_first)
            weight = reduced_range(weight, activation, role, spec)
            allowed.add((weight.num_bits, activation.num_bits))
        if (weight_bits, input_bits) not in allowed:
            return False
    return True
