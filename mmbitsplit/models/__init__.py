"""Torch modules and model surgery."""

from mmbitsplit.models.convert import (
    PreparedModel,
    apply,
    describe,
    prepare,
    quantized_layers,
    rebuild,
    swap_layer,
)
from mmbitsplit.models.dataflow import DataFlow
from mmbitsplit.models.geometry import layer_geometry, layer_kind
from mmbitsplit.models.quantized_layers import QuantizedLayer, SteppedLayer
from mmbitsplit.models.roles import check_request, layer_role
from mmbitsplit.models.watcher import layer_input, watch

__all__ = ['DataFlow', 'PreparedModel', 'QuantizedLayer', 'SteppedLayer', 'apply',
           'check_request', 'describe', 'layer_geometry', 'layer_input', 'layer_kind',
           'layer_role', 'prepare', 'quantized_layers', 'rebuild', 'swap_layer', 'watch']
