"""mmengine hooks."""

from mmbitsplit.engine.hooks.quantization_hook import QuantizationHook

__all__ = ['QuantizationHook']
