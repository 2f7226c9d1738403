"""Turns layers of a quantized model into ones that multiply bytes, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mmbitsplit.models.layers.integer_devices import (
    integer_weight,
    why_float_product_there,
    why_float_there,
    why_no_integers_on,
)
from mmbitsplit.models.layers.integer_weight import why_never
from mmbitsplit.models.layers.integer_widths import IntegerWidths
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.quantizers import ActivationQuantizerSet, WeightQuantizerSet
from mmbitsplit.models.surgery.install import quantized_layers, quantized_products

NOT_ASKED = 'it was not asked for'
# Until a GPU has said that they are quicker there.
ASK_ON_GPUS = 'how fast integers are on GPUs is not measured yet; ask with integer=True'


@dataclass(frozen=True)
class IntegerLayers:
    """What of a model is computed with integers.

    Args:
        integer: Names of the layers and products of activations that are.
        left: Those that are not, each with the reason.
    """

    integer: tuple[str, ...]
    left: dict[str, str]


def to_integer(model: nn.Module, integer: bool | Literal['auto'] = True,
               channels_last: bool = False) -> IntegerLayers:
    """Lets quantized layers and products of a model multiply bytes from now on, where they are.

    Layers stay the modules that they are, with their hooks. What they give is what they gave, but
    for the rounding of float32: rounded inputs are the same codes, and sums are whole numbers. A
    layer that cannot (float inputs) stays as it is, and a product in each call whose matrices are
    small. On CUDA devices Triton's kernels do it; where there is no Triton, torch's, and a warning
    says so.

    Args:
        model: Quantized, in eval mode; changed in place.
        integer: ``True``; ``'auto'``: where this torch and processor can, else nothing is done,
            and nothing on GPUs, where it is not measured yet how fast it is; ``False``: takes it
            back.
        channels_last: Give maps channels last in memory, which is quickest, whatever the order of
            the input; layers that stay in float on a CPU do so, too. For models without compiled
            operators of others, which may read such maps as if channels came first (mmcv's
            ``RoIAlign`` does).

    Returns:
        Which layers and products, and why not the others.

    Raises:
        ValueError: ``True``, and there is no layer that can.
    """
    check_mode(integer)
    if integer == 'auto' and _device(model).type == 'cuda':
        return _as_it_is(model, ASK_ON_GPUS)
    reason = why_no_integers_on(_device(model)) if integer else None
    if reason is not None and integer is True:
        raise ValueError(f"integer=True: {reason}. Give integer='auto' to compute in float where "
                         'there are no integers, or export to ONNX.')
    if not integer:
        _take_back(model)
        return IntegerLayers((), {})
    if reason is None:
        for _, layer in _layers(model):
            _turn(layer)
            layer.lay_out(channels_last and (layer.integers or layer.weight_scale.is_cpu))
        for _, product in quantized_products(model):
            product.integers = _why_float_product(product) is None
    found = integer_layers(model)
    if integer is True and not found.integer:
        raise ValueError(_nothing(found.left))
    return found


def integer_layers(model: nn.Module) -> IntegerLayers:
    """What of a model is computed with integers now, products as far as they have been run."""
    return _as_it_is(model, why_no_integers_on(_device(model)))


def _as_it_is(model: nn.Module, reason: str | None) -> IntegerLayers:
    """What is computed with integers; ``reason`` why nothing else could be, if there is one."""
    why: dict[str, str | None] = {}
    for name, layer in _layers(model):
        why[name] = layer.weight_quantizer.left if layer.integers \
            else reason or _why_float(layer) or NOT_ASKED
    for name, product in quantized_products(model):
        why[name] = product.left if product.integers \
            else reason or _why_float_product(product) or NOT_ASKED
    return IntegerLayers(tuple(name for name in why if why[name] is None),
                         {name: said for name, said in why.items() if said is not None})


def _take_back(model: nn.Module) -> None:
    for _, layer in _layers(model):
        layer.lay_out(False)
        if layer.integers:
            layer.weight_quantizer = layer.weight_quantizer.plain()
    for _, product in quantized_products(model):
        product.integers = False


def _layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    return ((name, layer) for name, layer in quantized_layers(model) if layer.quantized)


def _turn(layer: QuantizedLayer) -> None:
    """Lets a layer multiply bytes where it can, at some of its widths at least."""
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    if layer.integers or why_never(layer.geometry, weight, inputs) is not None:
        return
    if isinstance(weight, WeightQuantizerSet) or isinstance(inputs, ActivationQuantizerSet):
        layer.install_weight(IntegerWidths(weight, inputs, layer.input_factor))
    elif why_float_there(layer.geometry, weight.codes, inputs.qparams) is None:
        layer.install_weight(integer_weight(weight, inputs))


def _why_float(layer: QuantizedLayer) -> str | None:
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    return why_never(layer.geometry, weight, inputs) or why_float_there(
        layer.geometry, weight.codes, inputs.qparams)


def _why_float_product(product: Product) -> str | None:
    return why_float_product_there(*product.in_use().values())


def _device(model: nn.Module) -> torch.device:
    """Where the layers of a model are; of one that is spread over several, its first layer."""
    first = next(_layers(model), None)
    return torch.device('cpu') if first is None else first[1].weight_scale.device


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
