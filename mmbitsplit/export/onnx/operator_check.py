"""Lists what a runtime makes of a graph: which convolutions and products run in integers."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.export.onnx.runtimes import RUNTIMES, onnxruntime_session, openvino_model
from mmbitsplit.structures.options import check_choice

INTEGER_CONVOLUTIONS = ('QLinearConv', 'ConvInteger', 'QLinearConvTranspose')
FLOAT_CONVOLUTIONS = ('Conv', 'FusedConv', 'NhwcFusedConv', 'ConvTranspose')
INTEGER_PRODUCTS = ('QGemm', 'QLinearMatMul', 'MatMulInteger', 'MatMulIntegerToFloat',
                    'DynamicQuantizeMatMul')
FLOAT_PRODUCTS = ('Gemm', 'MatMul', 'FusedGemm', 'FusedMatMul', 'MatMulNBits')
OPENVINO_CONVOLUTIONS = ('Convolution', 'GroupConvolution', 'Deconvolution')
OPENVINO_PRODUCTS = ('FullyConnected', 'MatMul')


@dataclass(frozen=True, kw_only=True)
class OperatorCounts:
    """The operators of a graph as a runtime executes it.

    Args:
        operators: Number of operators by type.
        integer_convolutions, convolutions: Those computed in integers, and all.
        integer_products, products: The same of matrix products.
    """

    operators: dict[str, int]
    integer_convolutions: int
    convolutions: int
    integer_products: int
    products: int

    def __str__(self) -> str:
        text = f'{self.integer_convolutions} of {self.convolutions} convolutions'
        if self.products:
            text += f' and {self.integer_products} of {self.products} matrix products'
        return f'{text} run in integers'


def executed_operators(path: str | Path, runtime: str = 'onnxruntime') -> OperatorCounts:
    """Loads a file into a runtime with all optimizations and lists what it will execute.

    Args:
        path: The ONNX file.
        runtime: ``'onnxruntime'`` or ``'openvino'``.

    Raises:
        ValueError: Unknown or missing runtime.
    """
    check_choice('runtime', runtime, RUNTIMES)
    return _onnxruntime_operators(path) if runtime == 'onnxruntime' \
        else openvino_operators(openvino_model(path))


def _onnxruntime_operators(path: str | Path) -> OperatorCounts:
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / 'optimized.onnx'
        onnxruntime_session(path, optimized_to=optimized)
        graph = need('onnx').load(str(optimized)).graph
    counts = Counter(node.op_type for node in graph.node)

    def total(types: tuple[str, ...]) -> int:
        return sum(counts[name] for name in types)

    return OperatorCounts(
        operators=dict(counts.most_common()),
        integer_convolutions=total(INTEGER_CONVOLUTIONS),
        convolutions=total(INTEGER_CONVOLUTIONS + FLOAT_CONVOLUTIONS),
        integer_products=total(INTEGER_PRODUCTS),
        products=total(INTEGER_PRODUCTS + FLOAT_PRODUCTS))


def openvino_operators(compiled: Any) -> OperatorCounts:
    """The same of a compiled OpenVINO model; the kernel's name tells the precision it runs in."""
    counts, found = Counter(), Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = _fact(facts, 'layerType')
        precision = _fact(facts, 'runtimePrecision')
        integer = 'I8' in _fact(facts, 'primitiveType').upper() or precision in ('u8', 'i8')
        counts[f'{kind}:{precision}'] += 1
        for name, kinds in (('convolutions', OPENVINO_CONVOLUTIONS),
                            ('products', OPENVINO_PRODUCTS)):
            if kind in kinds:
                found[name] += 1
                found[f'integer_{name}'] += integer
    return OperatorCounts(operators=dict(counts.most_common()), **{
        name: found[name] for name in ('integer_convolutions', 'convolutions',
                                       'integer_products', 'products')})


def _fact(facts: Any, name: str) -> str:
    return str(facts[name].value if hasattr(facts[name], 'value') else facts[name]) \
        if name in facts else ''
