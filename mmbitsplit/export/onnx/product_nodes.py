"""Writes one call of a quantized product of activations as standard ONNX nodes.

    a -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- QuantizeLinear <- b

Codes are unsigned bytes on both sides, signed ones moved by 128 with their zero point:
onnxruntime's integer product takes a signed left side beside a signed right side alone, and of two
unsigned ones no pair sum saturates on processors without VNNI. Scales a head and powers of two have
no integer kernel; they are rounded by operators on floats, beside which runtimes fuse nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmbitsplit.export.onnx.node_writer import Nodes, NodeWriter
from mmbitsplit.models.layers.product import HEADS, Product
from mmbitsplit.models.layers.quantizers import ActivationQuantizer
from mmbitsplit.structures import QParams

MIDDLE = 128  # what turns a signed byte into an unsigned one


def write_product(graph: Any, node: Any, name: str, product: Product) -> Nodes:
    """Writes the nodes of a call.

    Args:
        graph: ``onnx_ir.Graph`` that gets the initializers.
        node: That stands for the call.
        name: Of the product.
        product: Whose inputs are rounded.
    """
    writer = _ProductWriter(graph, node.outputs[0].name)
    return writer.write([(x, f'{name}.{side}', quantizer) for x, (side, quantizer) in zip(
        node.inputs, product.in_use().items())])


class _ProductWriter(NodeWriter):

    def write(self, inputs: Sequence[tuple[Any, str, Any]]) -> Nodes:
        """Multiplies two values, each given with a name and its quantizer."""
        sides = [self._side(*given) for given in inputs]
        return Nodes(self.nodes, self._node('MatMul', sides))

    def _side(self, x: Any, name: str, quantizer: Any) -> Any:
        """What enters the product: dequantized values, or the input as it is."""
        if quantizer is None:
            return x
        if not isinstance(quantizer, ActivationQuantizer):
            return self._powers_of_two(x, quantizer.num_bits)
        if quantizer.scale.numel() > 1:
            return self._by_head(x, name, quantizer.qparams)
        return self._in_bytes(x, name, quantizer.qparams)

    def _in_bytes(self, x: Any, name: str, qparams: QParams) -> Any:
        shift = MIDDLE if qparams.quant_min < 0 else 0
        unsigned = QParams(qparams.scale, qparams.zero_point + shift, qparams.quant_min + shift,
                           qparams.quant_max + shift)
        scale = np.float32(float(unsigned.scale))
        point = np.array(int(unsigned.zero_point), np.uint8)
        codes = self._quantize(x, scale, point, unsigned, name, 0)
        return self._dequantize(codes, scale, point, name, 0)

    def _by_head(self, x: Any, name: str, qparams: QParams) -> Any:
        def stored(what: str, values: Any) -> Any:
            array = values.float().cpu().numpy()
            return self._store(f'{name}.{what}', array.reshape(-1, *[1] * (-HEADS - 1)))

        scale = stored('scales', qparams.scale)
        steps = self._node('Round', [self._node('Div', [x, scale])])
        low, high = (bound - qparams.zero_point for bound in qparams.limits())
        inside = self._node('Min', [self._node('Max', [steps, stored('lowest', low)]),
                                    stored('highest', high)])
        return self._node('Mul', [inside, scale])

    def _powers_of_two(self, x: Any, num_bits: int) -> Any:
        """See ``log2_round_trip``."""
        def number(value: float) -> Any:
            return self._store(f'float.{value:.9g}', np.float32(value))

        last = 2 ** num_bits - 1
        exponents = self._node('Mul', [self._node('Log', [x]), number(-1 / math.log(2))])
        codes = self._node('Clip', [self._node('Round', [exponents]), number(0.0), number(last)])
        powers = self._node('Pow', [number(2.0), self._node('Neg', [codes])])
        return self._node('Where', [self._node('Less', [codes, number(last)]), powers,
                                    number(0.0)])
