"""Products of two activations (attention's ``q @ k^T`` and ``a @ v``): asked, planned, solved."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mmbitsplit.structures.options import Options
from mmbitsplit.structures.solution import QParams
from mmbitsplit.structures.widths import Bits

Granularity = Literal['tensor', 'head']
SIDES = ('a', 'b')


@dataclass(frozen=True)
class ProductSpec(Options):
    """Products of two activations: both of their inputs are quantized.

    How scales are found is as ``quantization.activation`` says (``symmetry``, ``scale_search``,
    ``norm``); the rule of first and last layers does not apply.

    Args:
        num_bits: Width of a code of either input; ``None`` for that of the layers' inputs, or all
            of theirs where a method solves several. Where these are float, products are.
        granularity: ``'tensor'``: one scale an input; ``'head'``: one an index of the dimension
            before the last two, where an input has four dimensions and as many indices in every
            call. No runtime computes the latter as one integer product.
        softmax: What codes of softmax outputs mean: ``'uniform'``: steps of one size;
            ``'log2'``: powers of two, which no runtime computes in integers.
    """

    num_bits: Bits | None = None
    granularity: Granularity = 'tensor'
    softmax: Literal['uniform', 'log2'] = 'uniform'


@dataclass(frozen=True)
class ProductInput:
    """What is to be done with one input of a product.

    Args:
        num_bits: Width of a code, ``None`` for a float input.
        symmetry, scale_search, norm: As for inputs of layers, see ``ActivationSpec``.
        granularity: See ``ProductSpec``.
        softmax: ``'uniform'`` or ``'log2'`` where it is the output of a softmax, else ``None``.
    """

    num_bits: int | None
    symmetry: str = 'auto'
    scale_search: str = 'auto'
    norm: float = 3.0
    granularity: Granularity = 'tensor'
    softmax: Literal['uniform', 'log2'] | None = None


@dataclass(frozen=True)
class ProductPlan:
    """What is to be done with one product.

    Args:
        name: Dotted name of its module.
        a, b: Its inputs, as in ``a @ b``.
        role: ``'inner'``: products are neither first nor last.
        widths: Of both inputs, rising, where they are found for several; the last is the
            ``num_bits`` of both. Empty for one width.
    """

    name: str
    a: ProductInput
    b: ProductInput
    role: str = 'inner'
    widths: tuple[int, ...] = ()

    def sides(self) -> Iterator[tuple[str, ProductInput]]:
        """Yields ``('a', a)`` and ``('b', b)``."""
        return ((side, getattr(self, side)) for side in SIDES)


@dataclass(frozen=True)
class Log2Params:
    """Codes that mean powers of two: code c is ``2^-c``, the largest code is zero.

    Args:
        num_bits: Width of a code.
    """

    num_bits: int


@dataclass(frozen=True)
class ProductSolution:
    """How the inputs of a product are quantized; ``None`` for a float input.

    Args:
        a, b: One scale, or one an index of the dimension before the last two.
        narrower_a, narrower_b: Of fewer bits, that the product can be switched to.
    """

    a: QParams | Log2Params | None
    b: QParams | Log2Params | None
    narrower_a: tuple[QParams | Log2Params, ...] = ()
    narrower_b: tuple[QParams | Log2Params, ...] = ()


@dataclass(kw_only=True)
class ProductReport:
    """A row of ``products`` in ``layers.json``; what is of inputs stands as ``[a, b]``.

    Args:
        name: Dotted name of its module.
        shapes: Of the inputs in the first call that was watched.
        bits: Widths of codes, ``None`` for a float input.
        symmetry: ``'unsigned'``, ``'signed'``, ``'asymmetric'`` or ``'log2'``.
        granularity: ``'tensor'`` or ``'head'``.
        softmax: Whether the input is the output of a softmax.
        scales: Smallest and largest, real units a code step.
        scale_search: How they were found: ``'minmax'``, ``'mse'`` and so on; ``'unit'``: [0, 1]
            is the range; ``'clip 0.8'``: that part of the range seen.
        error: Squared error of the product relative to the spread of the float product of the
            same inputs.
        error_minmax: The same with the ranges that were seen.
        multiplications: Share of all that the model makes, 0 to 1.
        calls: Over all calibration batches.
        seconds: To find the scales.
        notes: Remarks, if any.
        width_errors: Of several widths, rising: ``activation_bits`` of both inputs, ``error`` and
            ``error_minmax``, each on what arrives at that width.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    bits: tuple[int | None, int | None]
    symmetry: tuple[str | None, str | None]
    granularity: tuple[str, str]
    softmax: tuple[bool, bool]
    scales: tuple[tuple[float, float] | None, tuple[float, float] | None]
    scale_search: tuple[str | None, str | None]
    error: float
    error_minmax: float
    multiplications: float
    calls: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    width_errors: list[dict[str, float]] = field(default_factory=list)
