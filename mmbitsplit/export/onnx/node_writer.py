"""Makes nodes and initializers of an ONNX graph; quantizers among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.structures import QParams


@dataclass(frozen=True)
class Nodes:
    """What stands in a call's place: nodes in order, and the value that is its output."""

    nodes: list[Any]
    output: Any


class NodeWriter:
    """Collects the nodes of a call; what is stored under a name is stored once.

    Args:
        graph: ``onnx_ir.Graph`` that gets the initializers.
        prefix: Of the names of nodes.
    """

    def __init__(self, graph: Any, prefix: str = ''):
        self.ir = need('onnx_ir')
        self.graph, self.prefix = graph, prefix
        self.nodes: list[Any] = []

    def _quantize(self, x: Any, scale: np.ndarray, zero_point: np.ndarray, qparams: QParams,
                  name: str, axis: int) -> Any:
        codes = self._node('QuantizeLinear', [
            x, self._store(f'{name}.scale', scale),
            self._store(f'{name}.zero_point', zero_point)], axis=axis if scale.ndim else None)
        limits = np.iinfo(zero_point.dtype)
        if (qparams.quant_min, qparams.quant_max) == (limits.min, limits.max):
            return codes  # QuantizeLinear saturates there itself
        bounds = [self._store(f'{name}.{end}', np.array(value, zero_point.dtype))
                  for end, value in (('min', qparams.quant_min), ('max', qparams.quant_max))]
        return self._node('Clip', [codes, *bounds])

    def _dequantize(self, codes: Any, scale: np.ndarray, zero_point: np.ndarray, name: str,
                    axis: int) -> Any:
        return self._node('DequantizeLinear', [
            codes, self._store(f'{name}.scale', scale),
            self._store(f'{name}.zero_point', zero_point)], axis=axis if scale.ndim else None)

    def _node(self, op_type: str, inputs: Sequence[Any], **attributes: Any) -> Any:
        given = {key: list(value) if isinstance(value, tuple) else value
                 for key, value in attributes.items() if value is not None}
        number = len(self.nodes)
        value = self.ir.Value(name=f'{self.prefix}_{op_type}_{number}')
        node = self.ir.node(op_type, inputs, given, outputs=[value],
                            name=f'node_{self.prefix}_{op_type}_{number}')
        self.nodes.append(node)
        return value

    def _store(self, name: str, array: np.ndarray, dtype: Any = None) -> Any:
        """The initializer of a name, made when first asked for."""
        if name not in self.graph.initializers:
            array = np.ascontiguousarray(array).reshape(np.shape(array))  # scalars stay scalars
            if dtype is not None:
                array = array.astype(dtype.numpy())
            tensor = self.ir.tensor(array, name=name)
            self.graph.register_initializer(self.ir.Value(
                name=name, const_value=tensor, shape=self.ir.Shape(array.shape),
                type=self.ir.TensorType(tensor.dtype)))
        return self.graph.initializers[name]
