"""Turns layers of a quantized model into ones that multiply bytes, and back."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mmbitsplit.models.layers.integer_support import why_no_integers
from mmbitsplit.models.layers.integer_weight import IntegerWeight, why_float
from mmbitsplit.models.surgery.install import quantized_layers


@dataclass(frozen=True)
class IntegerLayers:
    """What of a model is computed with integers.

    Args:
        integer: Names of the layers that are.
        left: Those that are not, each with the reason.
    """

    integer: tuple[str, ...]
    left: dict[str, str]


def to_integer(model: nn.Module, integer: bool | Literal['auto'] = True) -> IntegerLayers:
    """Lets the quantized layers of a model multiply bytes on the CPU from now on.

    Layers stay the modules that they are, with their hooks. What they give is what they gave, but
    for the rounding of float32: rounded inputs are the same codes, and sums are whole numbers. A
    layer that cannot (float inputs, sums that would saturate) stays as it is.

    Args:
        model: Quantized, in eval mode; changed in place.
        integer: ``True``; ``'auto'``: where this torch and processor can, else nothing is done;
            ``False``: takes it back.

    Returns:
        Which layers, and why not the others.

    Raises:
        ValueError: ``True``, and there is no layer that can.
    """
    check_mode(integer)
    reason = why_no_integers() if integer else None
    if reason is not None and integer is True:
        raise ValueError(f"integer=True: {reason}. Give integer='auto' to compute in float where "
                         'there are no integers, or export to ONNX.')
    done, left = [], {}
    for name, layer in quantized_layers(model):
        if not layer.quantized:
            continue
        if layer.integers:
            if integer:
                done.append(name)
            else:
                layer.weight_quantizer = layer.weight_quantizer.plain()
            continue
        if not integer:
            continue
        why = reason or why_float(layer.geometry, layer.weight_quantizer, layer.input_quantizer)
        if why is None:
            layer.install_weight(IntegerWeight(layer.weight_quantizer, layer.input_quantizer))
            done.append(name)
        else:
            left[name] = why
    if integer is True and not done:
        raise ValueError(_nothing(left))
    return IntegerLayers(tuple(done), left)


def integer_layers(model: nn.Module) -> IntegerLayers:
    """What of a model is computed with integers now."""
    layers = [(name, layer) for name, layer in quantized_layers(model) if layer.quantized]
    reason = why_no_integers()
    return IntegerLayers(
        tuple(name for name, layer in layers if layer.integers),
        {name: reason or why_float(layer.geometry, layer.weight_quantizer, layer.input_quantizer)
         or 'it was not asked for' for name, layer in layers if not layer.integers})


def check_mode(integer: object) -> None:
    """Raises ``ValueError`` unless it is a value that ``to_integer`` takes."""
    if not (isinstance(integer, bool) or integer == 'auto'):
        raise ValueError(f"integer={integer!r} is not known; allowed are True, False and 'auto'.")


def _nothing(left: dict[str, str]) -> str:
    if not left:
        return 'integer=True: the model has no quantized layer; quantize it first.'
    name, why = next(iter(left.items()))
    return (f"integer=True: none of {len(left)} layers can be computed with integers; '{name}': "
            f"{why}. Give integer='auto' to compute in float then.")
