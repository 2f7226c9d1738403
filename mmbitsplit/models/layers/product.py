"""A product of two activations as a module, so that it can be seen, planned and quantized."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional.kernels.precision import autocast_dtype, full_float32
from mmbitsplit.models.layers.integer_devices import byte_product, why_float_product_there
from mmbitsplit.models.layers.integer_product import IntegerProduct
from mmbitsplit.models.layers.quantizers.activation_quantizer import ActivationQuantizer
from mmbitsplit.models.layers.quantizers.activation_quantizer_set import (
    ActivationQuantizerSet,
    Quantizer,
    of_widths,
    use_widths,
)
from mmbitsplit.models.layers.quantizers.log2_quantizer import Log2Quantizer
from mmbitsplit.models.layers.streams import in_float_model
from mmbitsplit.structures import QParams
from mmbitsplit.structures.products import SIDES, Log2Params, ProductPlan, ProductSolution

HEADS = -3  # the dimension that scales a head run along


class Product(nn.Module):
    """Multiplies two activations, as ``torch.matmul`` does; it holds no weight.

    ``models.opening`` puts one into a module for each product that the module's forward computes
    (``q @ k^T``, ``a @ v``), and brings every way in which it is written to this form. From
    ``install`` on both inputs are rounded: codes less zero points are multiplied, whose sums are
    exact, and the scales after them. Where the float model is run with the modules of the quantized
    one (``streams_through``) it multiplies what it is given.

    Args:
        softmax: ``'a'`` or ``'b'`` where that side comes out of a softmax, as far as was seen.

    Attributes:
        a_quantizer, b_quantizer: Of the inputs, ``None`` for float ones.
        integers: Whether it multiplies bytes where it can (``models.to_integer``).
    """

    integers = False
    _bytes: IntegerProduct | None = None

    a_quantizer: Quantizer | ActivationQuantizerSet | None
    b_quantizer: Quantizer | ActivationQuantizerSet | None

    def __init__(self, softmax: str | None = None):
        super().__init__()
        self.softmax = softmax
        for side in SIDES:
            self.register_module(f'{side}_quantizer', None)

    @property
    def quantized(self) -> bool:
        """Whether an input is rounded."""
        return any(quantizer is not None for quantizer in self.quantizers().values())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Args: a (..., M, K), b (..., K, N), both at least 2-D. Returns: (..., M, N)."""
        if not self.quantized or in_float_model():
            return torch.matmul(a, b)
        # Codes are multiplied in full under autocast, too; what comes after gets what it expects.
        expected = autocast_dtype('linear', a.device) or torch.promote_types(a.dtype, b.dtype)
        with torch.autocast(a.device.type, enabled=False), \
                full_float32() if a.is_cuda else nullcontext():
            return self._of_codes(a.float(), b.float()).to(expected)

    def _of_codes(self, a: Tensor, b: Tensor) -> Tensor:
        multiplied = self.byte_product() if self.integers else None
        output = None if multiplied is None else multiplied.product(a, b)
        if output is not None:
            return output
        output, factor = torch.matmul(*(
            _codes(quantizer, x) for quantizer, x in zip(self.in_use().values(), (a, b)))), None
        for quantizer in self.in_use().values():
            if isinstance(quantizer, ActivationQuantizer):
                scale = quantizer.scale.to(output.device)
                scale = scale if scale.numel() == 1 else scale.view(-1, 1, 1)
                factor = scale if factor is None else factor * scale
        return output if factor is None else output * factor

    def install(self, solution: ProductSolution, device: torch.device | None = None) -> None:
        """Rounds its inputs from now on.

        Args:
            solution: How.
            device: Where scales are kept; where they are when not given.
        """
        for side in SIDES:
            params, narrower = getattr(solution, side), getattr(solution, f'narrower_{side}')
            quantizer = None if params is None else of_widths(
                [_quantizer(one) for one in (params, *narrower)]).train(self.training)
            setattr(self, f'{side}_quantizer', None if quantizer is None else quantizer.to(device))

    def byte_product(self) -> IntegerProduct | None:
        """What multiplies bytes for the widths in use; ``None`` where it cannot."""
        sides = self.in_use().values()
        if self._bytes is None or not self._bytes.is_for(*sides):
            self._bytes = None if why_float_product_there(*sides) else byte_product(*sides)
        return self._bytes

    @property
    def left(self) -> str | None:
        """Why it was multiplied in float so far though it ``integers``, ``None`` where it was
        not."""
        found = self._bytes
        if not self.integers or found is None or found.used or found.too_small is None:
            return None
        return (f'its matrices, {"x".join(map(str, found.too_small))}, are so small that float '
                'takes less time')

    def to_float(self) -> None:
        """Takes ``install`` back."""
        self.install(ProductSolution(None, None))

    def solution(self) -> ProductSolution:
        """What the quantizers stand for now, as ``install`` takes it: all copied."""
        found: dict[str, Any] = {}
        for side, quantizer in self.quantizers().items():
            found[side], *narrower = (None,) if quantizer is None else quantizer.solutions()
            found[f'narrower_{side}'] = tuple(narrower)
        return ProductSolution(**found)

    def use(self, a: int | None = None, b: int | None = None) -> None:
        """Switches to other widths of its inputs; ``None`` leaves one as it is.

        Raises:
            ValueError: There is no such width; nothing has been switched then.
        """
        use_widths(self.quantizers(), {'a': a, 'b': b})

    def quantizers(self) -> dict[str, Quantizer | ActivationQuantizerSet | None]:
        """Those of ``'a'`` and ``'b'``."""
        return {side: self._modules[f'{side}_quantizer'] for side in SIDES}

    def in_use(self) -> dict[str, Quantizer | None]:
        """Those of the widths in use."""
        return {side: getattr(quantizer, 'active', quantizer)
                for side, quantizer in self.quantizers().items()}

    # Checkpoints.

    def plan_row(self, plan: ProductPlan | None = None) -> dict[str, Any]:
        """What a checkpoint must say besides tensors; ``plan`` adds what readers want to know."""
        row: dict[str, Any] = {}
        for side, quantizer in self.quantizers().items():
            row[side], *narrower = (None,) if quantizer is None else \
                map(_row, quantizer.solutions())
            if narrower:
                row[side]['narrower'] = narrower
        for side, asked in () if plan is None else plan.sides():
            if row[side] is not None and asked.softmax is not None:
                row[side]['softmax'] = True
        return row

    def expect(self, row: Mapping[str, Any]) -> None:
        """Makes room for the state that ``plan_row`` described, before it is loaded."""
        found: dict[str, Any] = {}
        for side in SIDES:
            own = row.get(side)
            found[side] = None if own is None else _blank(own)
            found[f'narrower_{side}'] = tuple(map(_blank, (own or {}).get('narrower', ())))
        self.install(ProductSolution(**found))

    def extra_repr(self) -> str:
        kind = 'quantized' if self.quantized else 'float'
        return kind if self.softmax is None else f'{kind}, softmax={self.softmax!r}'


def product_shape(a: torch.Size, b: torch.Size) -> torch.Size:
    """Shape of what a product gives for inputs of these shapes."""
    return torch.Size((*torch.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]))


def _quantizer(params: QParams | Log2Params) -> Quantizer:
    return Log2Quantizer(params) if isinstance(params, Log2Params) else ActivationQuantizer(
        params, HEADS if params.scale.numel() > 1 else -1)


def _codes(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    """What enters the product: codes less zero point, powers of two, or the input as it is."""
    if quantizer is None:
        return x
    heads = quantizer.scale.numel() if isinstance(quantizer, ActivationQuantizer) else 1
    if heads > 1 and (x.dim() < -HEADS or x.shape[HEADS] != heads):
        raise ValueError(f'A product with a scale for each of {heads} heads got an input of shape '
                         f"{tuple(x.shape)}. Quantize with products=dict(granularity='tensor').")
    return quantizer(x)


def _row(params: QParams | Log2Params) -> dict[str, Any]:
    if isinstance(params, Log2Params):
        return {'log2': params.num_bits}
    return {'size': params.scale.numel(), 'quant_min': params.quant_min,
            'quant_max': params.quant_max}


def _blank(row: Mapping[str, Any]) -> QParams | Log2Params:
    if 'log2' in row:
        return Log2Params(row['log2'])
    size = row['size']
    return QParams(torch.ones(size), torch.zeros(size), row['quant_min'], row['quant_max'])
