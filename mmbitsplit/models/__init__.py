"""Torch modules with integer codes, what is seen of a model, and model surgery."""

from mmbitsplit.models.layers.geometry import layer_geometry, layer_kind
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.stepped_layer import SteppedLayer
from mmbitsplit.models.surgery.install import apply, quantized_layers, quantized_products
from mmbitsplit.models.surgery.integers import IntegerLayers, integer_layers, to_integer
from mmbitsplit.models.surgery.prepare import PreparedModel, prepare
from mmbitsplit.models.surgery.rebuild import describe, note_surgery, rebuild, surgery_of
from mmbitsplit.models.switching import (
    LayerBits,
    LayerWidths,
    bits_of,
    set_bits,
    set_plan,
    use_bits,
    widths_of,
)
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.roles import last_layers, layer_role
from mmbitsplit.models.watch.watch_model import watch
from mmbitsplit.models.watch.watcher import layer_input

__all__ = ['DataFlow', 'IntegerLayers', 'LayerBits', 'LayerWidths', 'PreparedModel',
           'QuantizedLayer', 'SteppedLayer', 'apply', 'bits_of', 'describe', 'integer_layers',
           'last_layers', 'layer_geometry', 'layer_input', 'layer_kind', 'layer_role',
           'note_surgery', 'prepare', 'quantized_layers', 'quantized_products', 'rebuild',
           'set_bits', 'set_plan', 'surgery_of', 'to_integer', 'use_bits', 'watch', 'widths_of']
