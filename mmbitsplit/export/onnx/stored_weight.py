"""The weight of a layer's width in use as an ONNX file stores it: codes and scales alone.

``'floor'`` codes stand for ``scale * (q + 1/2)``. Of fewer than 8 bits, ``2 q + 1`` at half the
scale is the same in int8 and needs no offset. With 8 bits it would take nine: there the offset
stays, which no runtime's integer kernels add, so the layer multiplies in float.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmbitsplit.functional import is_midrise as is_midrise_offset
from mmbitsplit.functional import odd_codes
from mmbitsplit.models import QuantizedLayer


@dataclass(frozen=True)
class StoredWeight:
    """Codes and scales of a file.

    Args:
        codes: int8, shape of the weight.
        scale: (out_channels,) float64.
        half: Whether half a step is added to every weight.
        num_bits: Width of these codes.
    """

    codes: Tensor
    scale: np.ndarray
    half: bool
    num_bits: int


def stored_weight(layer: QuantizedLayer) -> StoredWeight:
    """What stands for the weight of a layer, at the widths in use."""
    scale = layer.weight_scale.double().cpu().numpy()
    if not is_midrise(layer):
        return StoredWeight(layer.codes, scale, False, layer.num_bits)
    if keeps_offset(layer):
        return StoredWeight(layer.codes, scale, True, layer.num_bits)
    return StoredWeight(odd_codes(layer.codes), scale / 2, False, layer.num_bits + 1)


def is_midrise(layer: QuantizedLayer) -> bool:
    """Whether its codes are ``'floor'`` codes with half a step for an offset."""
    return layer.weight_quantizer.nesting == 'floor' and is_midrise_offset(
        layer.weight_scale, layer.weight_offset)


def keeps_offset(layer: QuantizedLayer) -> bool:
    """Whether the file has half a step to add to every weight."""
    return layer.num_bits == 8 and is_midrise(layer)
