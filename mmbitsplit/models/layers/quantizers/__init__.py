"""Quantizers that layers own."""

from mmbitsplit.models.layers.quantizers.activation_quantizer import ActivationQuantizer
from mmbitsplit.models.layers.quantizers.weight_quantizer import WeightQuantizer
from mmbitsplit.models.layers.quantizers.weight_quantizer_set import WeightQuantizerSet

__all__ = ['ActivationQuantizer', 'WeightQuantizer', 'WeightQuantizerSet']
