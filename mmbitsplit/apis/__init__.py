"""What users call from Python."""

from mmbitsplit.apis.loading import load_quantized
from mmbitsplit.apis.model_files import save_quantized
from mmbitsplit.apis.quantize_model import quantize_model
from mmbitsplit.models import bits_of, set_bits, set_plan, widths_of

__all__ = ['bits_of', 'export_onnx', 'load_quantized', 'pareto_front', 'quantize_config',
           'quantize_model', 'save_quantized', 'set_bits', 'set_plan', 'widths_of']


def __getattr__(name: str):
    """Imports what needs mmengine when it is asked for; the others need torch alone."""
    # Their files have other names: a submodule would take the place of a function of its name.
    if name == 'quantize_config':
        from mmbitsplit.apis.from_config import quantize_config
        return quantize_config
    if name == 'pareto_front':
        from mmbitsplit.apis.pareto import pareto_front
        return pareto_front
    if name == 'export_onnx':
        from mmbitsplit.apis.onnx_files import export_onnx
        return export_onnx
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
