"""What users call from Python."""

from mmbitsplit.apis.quantize_model import quantize_model

__all__ = ['load_quantized', 'quantize_config', 'quantize_model']


def __getattr__(name: str):
    """Imports what needs mmengine when it is asked for; ``quantize_model`` needs torch alone."""
    if name == 'quantize_config':
        from mmbitsplit.apis.quantize_config import quantize_config
        return quantize_config
    if name == 'load_quantized':
        from mmbitsplit.apis.load_quantized import load_quantized
        return load_quantized
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
