"""Which layers a processor without VNNI may compute wrongly; see ``functional.saturation``."""

from collections.abc import Mapping

from mmbitsplit.export.onnx.stored_weight import keeps_offset, stored_weight
from mmbitsplit.functional.patches import weight_rows
from mmbitsplit.functional.saturation import pairs_saturate
from mmbitsplit.models import QuantizedLayer


def saturating_layers(layers: Mapping[str, QuantizedLayer]) -> list[str]:
    """Returns the names of the layers that ``may_saturate``."""
    return [name for name, layer in layers.items() if may_saturate(layer)]


def may_saturate(layer: QuantizedLayer) -> bool:
    """Whether two products of a layer, in whatever order, can leave 16 bits."""
    if layer.qparams is None or keeps_offset(layer):  # computed in float
        return False
    return pairs_saturate(weight_rows(stored_weight(layer).codes, layer.geometry),
                          input_reach(layer.qparams.quant_min, layer.qparams.quant_max))


def input_reach(quant_min: int, quant_max: int) -> int:
    """Largest unsigned byte that such input codes become: of signed ones 128 more."""
    return int(quant_max) + (128 if quant_min < 0 else 0)
