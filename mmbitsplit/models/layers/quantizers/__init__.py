"""Quantizers that layers own."""

from mmbitsplit.models.layers.quantizers.activation_quantizer import ActivationQuantizer
from mmbitsplit.models.layers.quantizers.activation_quantizer_set import (
    ActivationQuantizerSet,
    check_widths,
    of_widths,
)
from mmbitsplit.models.layers.quantizers.weight_quantizer import WeightQuantizer, times
from mmbitsplit.models.layers.quantizers.weight_quantizer_set import WeightQuantizerSet

__all__ = ['ActivationQuantizer', 'ActivationQuantizerSet', 'WeightQuantizer',
           'WeightQuantizerSet', 'check_widths', 'of_widths', 'times']
