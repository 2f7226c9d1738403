"""What is to be done with each layer of a model, and what was seen that a plan cannot mend."""

from dataclasses import dataclass

from mmbitsplit.structures.products import ProductPlan
from mmbitsplit.structures.spec import ActivationSpec, WeightSpec


@dataclass(frozen=True)
class OutputPlan:
    """How a layer's output is to be quantized: one scale for the whole tensor.

    Args:
        num_bits: Width of a code.
        rectified: Whether everything that reads the output does so through a ReLU, so that
            negative values need no codes.
        widths: Rising, where it is a residual stream of several; the last is ``num_bits``.
    """

    num_bits: int
    rectified: bool
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerPlan:
    """What is to be done with one layer.

    Args:
        name: Dotted name in the model.
        weight: Weight settings.
        activation: Input settings; ``num_bits=None`` for a float input.
        role: ``'first'``, ``'last'``, ``'first+last'`` or ``'inner'``.
        output: Of a quantized output, ``None`` for a float one.
        rectified: Whether everything that reads its output does so through a ReLU.
        stream: Name of the stream that it reads and whose codes are its input's; empty where its
            input has scales of its own.
        codes_of: Name of the embedding whose weight is also this layer's and whose codes it takes
            as they are; empty for a layer with codes of its own.
        widths: Of the weight, rising, where it is solved for several; the last is
            ``weight.num_bits``. Empty for one width.
        input_widths: Of its input likewise, the last is ``activation.num_bits``.
    """

    name: str
    weight: WeightSpec
    activation: ActivationSpec
    role: str = 'inner'
    output: OutputPlan | None = None
    rectified: bool = False
    stream: str = ''
    codes_of: str = ''
    widths: tuple[int, ...] = ()
    input_widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is to be done with a table whose rows are looked up; it has no input to quantize.

    Args:
        name: Dotted name in the model.
        weight: Weight settings.
        role: Always ``'first'``.
    """

    name: str
    weight: WeightSpec
    role: str = 'first'


@dataclass(frozen=True)
class StreamPlan:
    """A tensor that a layer and something else read (a skip connection), in codes for both.

    Args:
        name: Of the module that gives it: a residual block, an activation function. A layer's name
            where no other module gives it; then it is the layer's quantized output.
        num_bits: Width of a code.
        readers: Layers that take these codes as they are.
        on_layer: Whether ``name`` is a layer's.
        widths: Rising, where it has those of its readers' inputs; the last is ``num_bits``. Empty
            for one width.
    """

    name: str
    num_bits: int
    readers: tuple[str, ...]
    on_layer: bool = False
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class BitPlan:
    """The plan of all layers in execution order, and what stays float and why.

    Args:
        layers: Those that are quantized.
        kept_float: Those that are not.
        streams: Quantized residual streams.
        open_streams: Layers beside whose input a skip connection stays float, though it was to be
            quantized: no module by itself gives the tensor.
        products: Products of activations that are quantized, in execution order.
        embeddings: Tables that are quantized, in the order in which they are looked up first.
    """

    layers: tuple[LayerPlan, ...]
    kept_float: tuple['FloatRemainder', ...] = ()
    streams: tuple[StreamPlan, ...] = ()
    open_streams: tuple[str, ...] = ()
    products: tuple[ProductPlan, ...] = ()
    embeddings: tuple[EmbeddingPlan, ...] = ()

    @property
    def several_widths(self) -> bool:
        """Whether something of it is solved for several widths."""
        return any(layer.widths or layer.input_widths for layer in self.layers) \
            or any(product.widths for product in self.products)

    @property
    def activation_widths(self) -> tuple[int, ...]:
        """Those that inputs are switched between, rising; none where all have one."""
        return next((own for own in (*(layer.input_widths for layer in self.layers),
                                     *(product.widths for product in self.products)) if own), ())


@dataclass(frozen=True)
class FloatRemainder:
    """A part of the model that stays float: an unsupported layer, a batch norm left unfolded.

    Args:
        name: Dotted name in the model.
        kind: Its class.
        reason: Why it stays float.
        num_weights: Its own parameters.
        share: Of all parameters of the model, 0 to 1.
        requested: Whether scope, an override or a plan keeps it in float, and another plan can
            have it quantized.
        multiplications: Share of all that the model makes, 0 to 1; ``None`` where unknown.
    """

    name: str
    kind: str
    reason: str
    num_weights: int
    share: float
    requested: bool = False
    multiplications: float | None = None


@dataclass(frozen=True)
class Selection:
    """A step between layers that picks or orders rows by values of layers.

    Args:
        operation: Of torch, such as ``'topk'``.
        module: Dotted name of the module whose method runs it; empty for the model itself.
        method: Name of the method.
        reaches: Layers that get what was picked, without another layer between.
    """

    operation: str
    module: str
    method: str
    reaches: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.operation} in {f'{self.module}.' if self.module else ''}{self.method}"
