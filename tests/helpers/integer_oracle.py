"""A layer in double precision, for what multiplies bytes to be compared with."""

from torch import Tensor

from mmbitsplit.functional import apply_layer, product_input
from mmbitsplit.models import QuantizedLayer


def exact(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """The output of a layer on real inputs, float64."""
    quantizer, inputs = layer.weight_quantizer, layer.input_quantizer
    codes = product_input(x, inputs.qparams, inputs.channel_dim).double()
    bias = quantizer.bias
    return apply_layer(codes, quantizer.weight().double(), None if bias is None else bias.double(),
                       layer.geometry)
