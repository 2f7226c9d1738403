"""What users call from Python."""

from mmbitsplit.apis.quantize_model import quantize_model

__all__ = ['quantize_model']
