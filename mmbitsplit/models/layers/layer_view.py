"""What a quantized layer shows: what it multiplies by, what others read, its quantizers' values."""

from typing import Any

from torch import Tensor

from mmbitsplit.models.layers.in_place_base import InPlaceModule
from mmbitsplit.models.layers.integer_weight import IntegerWeight
from mmbitsplit.models.layers.integer_widths import IntegerWidths
from mmbitsplit.models.layers.outside_view import Remembered, float_bias, float_weight
from mmbitsplit.models.layers.quantizers import (
    ActivationQuantizer,
    ActivationQuantizerSet,
    WeightQuantizer,
    WeightQuantizerSet,
    times,
)
from mmbitsplit.structures import LayerGeometry, QParams

OF_NORM = ('norm_scale', 'norm_shift')
SIDES = ('weight', 'input', 'output')  # whose quantizers there are
Integers = IntegerWeight | IntegerWidths


class LayerView(InPlaceModule):
    """The part of ``QuantizedLayer`` that changes nothing."""

    geometry: LayerGeometry
    weight_quantizer: WeightQuantizer | WeightQuantizerSet | Integers | None
    input_quantizer: ActivationQuantizer | ActivationQuantizerSet | None
    output_quantizer: ActivationQuantizer | ActivationQuantizerSet | None
    _has_bias: bool
    _as_read: Remembered

    @property
    def quantized(self) -> bool:
        """Whether codes are installed."""
        return self.weight_quantizer is not None

    @property
    def several(self) -> bool:
        """Whether there is something to switch: several widths of the weight, input or output."""
        return any(len(quantizer.widths) > 1 for quantizer in self.quantizers().values())

    def quantizers(self) -> dict[str, Any]:
        """Those that there are, by side: of weight, input, output."""
        return {side: quantizer for side in SIDES
                if (quantizer := self._modules[f'{side}_quantizer']) is not None}

    @property
    def input_factor(self) -> Tensor | float:
        """The scale of the input in use in parts of that which the weight's scale carries."""
        inputs = self._modules['input_quantizer']
        return inputs.factor() if isinstance(inputs, ActivationQuantizerSet) else 1.0

    @property
    def product_weight(self) -> Tensor:
        """What it multiplies by: of the weight quantizer once there is one."""
        quantizer = self._modules['weight_quantizer']
        if quantizer is None:
            return self._parameters['weight']
        inputs = self._modules['input_quantizer']
        return quantizer.weight(inputs.factor()) if isinstance(inputs, ActivationQuantizerSet) \
            else quantizer.weight()

    @property
    def product_bias(self) -> Tensor | None:
        """(out_channels,) what it adds."""
        quantizer = self._modules['weight_quantizer']
        return self._parameters['bias'] if quantizer is None else quantizer.bias

    @property
    def weight(self) -> Tensor:
        """For others to read: the weight in units of the float model's layer, dequantized."""
        weight, inputs = self.product_weight, self.input_quantizer
        scale = inputs.scale if self.quantized and inputs is not None and inputs.unit else None
        norm = self._buffers.get('norm_scale')
        if scale is None and norm is None:
            return weight
        return self._as_read.of((weight, scale, norm), lambda: float_weight(
            weight, self.geometry, scale, norm))

    @property
    def bias(self) -> Tensor | None:
        """For others to read: the bias in the same units, ``None`` where the float layer has
        none."""
        bias, norm = self.product_bias, [self._buffers.get(name) for name in OF_NORM]
        if not self._has_bias or bias is None:
            return None
        return bias if norm[0] is None else float_bias(bias, *norm)

    # What others read of the quantizers.

    @property
    def codes(self) -> Tensor | None:
        """int8, shape of the weight."""
        return None if self.weight_quantizer is None else self.weight_quantizer.codes

    @property
    def num_bits(self) -> int | None:
        """Width of a weight code."""
        return None if self.weight_quantizer is None else self.weight_quantizer.num_bits

    @property
    def weight_scale(self) -> Tensor | None:
        """(out_channels,) real units a step of the product, with the input in use."""
        quantizer = self.weight_quantizer
        return None if quantizer is None else times(quantizer.scale, self.input_factor)

    @property
    def weight_offset(self) -> Tensor | None:
        """(out_channels,) added to every weight of a channel, with the input in use."""
        quantizer = self.weight_quantizer
        return None if quantizer is None else times(quantizer.offset, self.input_factor)

    @property
    def qparams(self) -> QParams | None:
        """Of the input."""
        return None if self.input_quantizer is None else self.input_quantizer.qparams

    @property
    def output_qparams(self) -> QParams | None:
        """Of the output."""
        return None if self.output_quantizer is None else self.output_quantizer.qparams
