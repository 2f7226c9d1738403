"""What a layer is: its geometry, its place in the plan, and what calibration found for it."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.structures.spec import ActivationSpec, WeightSpec

KINDS = ('conv2d', 'conv_transpose2d', 'linear')
# Zero padding that follows from the input's size: TensorFlow's 'same', ceil(size / stride) outputs.
# Where it is uneven, one more is at the end ('upper') or at the start.
AUTO_PADDINGS = ('none', 'same_upper', 'same_lower')


@dataclass(frozen=True)
class LayerGeometry:
    """How inputs meet weights in a layer; sizes are (height, width).

    A linear layer is described by its kind and channels alone.
    """

    kind: str
    in_channels: int
    out_channels: int
    _: KW_ONLY
    groups: int = 1
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    # Padding that F.conv2d cannot do alone (reflect, replicate, circular, an uneven 'same'):
    # (left, right, top, bottom) and a mode of F.pad, applied first.
    pre_padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pre_padding_mode: str = 'zeros'
    # One of AUTO_PADDINGS; the other paddings are zero where it is not 'none'.
    auto_padding: str = 'none'

    @property
    def inputs_per_output(self) -> int:
        """Number N of weights of one output channel."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as torch stores it for this kind."""
        if self.kind == 'linear':
            return (self.out_channels, self.in_channels)
        if self.kind == 'conv_transpose2d':
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)


@dataclass(frozen=True)
class OutputPlan:
    """How a layer's output is to be quantized: one scale for the whole tensor.

    Args:
        num_bits: Width of a code.
        rectified: Whether everything that reads the output does so through a ReLU, so that
            negative values need no codes.
    """

    num_bits: int
    rectified: bool


@dataclass(frozen=True)
class LayerPlan:
    """What is to be done with one layer.

    Args:
        name: Dotted name in the model.
        weight: Weight settings.
        activation: Input settings; ``num_bits=None`` for a float input.
        role: ``'first'``, ``'last'``, ``'first+last'`` or ``'inner'``.
        output: Of a quantized output, ``None`` for a float one.
    """

    name: str
    weight: WeightSpec
    activation: ActivationSpec
    role: str = 'inner'
    output: OutputPlan | None = None


@dataclass(frozen=True)
class BitPlan:
    """The plan of all layers in execution order, and what stays float and why.

    Args:
        layers: Those that are quantized.
        kept_float: Those that are not.
    """

    layers: tuple[LayerPlan, ...]
    kept_float: tuple['FloatRemainder', ...] = ()


@dataclass(frozen=True)
class FloatRemainder:
    """A part of the model that stays float: an unsupported layer, a batch norm left unfolded.

    Args:
        name: Dotted name in the model.
        kind: Its class.
        reason: Why it stays float.
        num_weights: Its own parameters.
        share: Of all parameters of the model, 0 to 1.
    """

    name: str
    kind: str
    reason: str
    num_weights: int
    share: float


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


@dataclass(frozen=True)
class QParams:
    """Affine quantization parameters of a tensor; real = (code - zero_point) * scale.

    Args:
        scale: (1,) or (C,) float, real units a code step.
        zero_point: (1,) or (C,) float holding integers; code that means exactly zero.
        quant_min, quant_max: Smallest and largest code.
        unit: ``True`` when codes enter the product with unit scale because the scale was moved
            into the weights (per-tensor and ECAQ); ``False`` for per-channel, where the
            dequantized values enter.
        channel_max: (C,) holding integers: largest code of each channel, where channels differ in
            width; ``None`` where all have ``quant_max``. Where ``quant_min`` is negative, a
            channel's smallest code is one further from zero than its largest.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    _: KW_ONLY
    unit: bool = True
    channel_max: Tensor | None = None

    def limits(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest code, (1,) or (C,), on the device of the scale."""
        if self.channel_max is None:
            one = self.scale[:1]
            return torch.full_like(one, self.quant_min), torch.full_like(one, self.quant_max)
        high = self.channel_max.to(self.scale)
        return (-high - 1 if self.quant_min < 0 else torch.zeros_like(high)), high


@dataclass(frozen=True, kw_only=True)
class LayerMeans:
    """Means over K sampled positions; x what enters the product, y the float output, no bias.

    Args:
        x_sum: (G, N).
        y_sum: (G, M).
        count: K.
    """

    x_sum: Tensor
    y_sum: Tensor
    count: int

    @property
    def x_mean(self) -> Tensor:
        """Mean of x, (G, N)."""
        return self.x_sum / self.count

    @property
    def y_mean(self) -> Tensor:
        """Mean of y, (G, M)."""
        return self.y_sum / self.count


@dataclass(frozen=True, kw_only=True)
class LayerStatistics(LayerMeans):
    """Sums of products over the positions: all that a solver needs of them.

    Shapes: ``gram`` (G, N, N), ``cross`` (G, M, N), ``y_sq`` (G, M); all sums are float64 for
    small layers and float32 for large ones.
    """

    gram: Tensor
    cross: Tensor
    y_sq: Tensor

    def __add__(self, other: 'LayerStatistics') -> 'LayerStatistics':
        return LayerStatistics(**{name: getattr(self, name) + getattr(other, name)
                                  for name in (*SUMS, 'count')})

    def to(self, dtype: torch.dtype) -> 'LayerStatistics':
        """The same in another dtype."""
        return LayerStatistics(count=self.count,
                               **{name: getattr(self, name).to(dtype) for name in SUMS})


SUMS = ('gram', 'cross', 'y_sq', 'x_sum', 'y_sum')  # what adds up over positions, beside count


@dataclass(frozen=True, kw_only=True)
class RowStatistics(LayerMeans):
    """The positions themselves, for layers whose gram would be larger than they are.

    Args:
        x: (G, N, K) what enters the product.
        y: (G, M, K) float outputs without bias.
        centred: Whether means are to be taken out (the bias is fitted too).
        lowest: Given when x holds integers from here to 255 more, one for all or (G, N, 1).
    """

    x: Tensor
    y: Tensor
    centred: bool = False
    lowest: int | Tensor | None = None


@dataclass(frozen=True)
class WeightSolution:
    """Weight codes of a layer and how they were found.

    Args:
        codes: (G, M, N) int8.
        scale: (G, M) float, real units a code step.
        objective: (G, M) sum of squared output errors over the statistics it was solved on.
        num_sweeps: Sweeps over all columns that the descent took.
        history: Total objective before and after every fit of the scales, the start's first.
        offset: (G, M) real number added to every weight of a channel, ``None`` for none.
        num_bits: (G, M) width of each channel's codes, where channels differ.
    """

    codes: Tensor
    scale: Tensor
    objective: Tensor
    _: KW_ONLY
    num_sweeps: int = 0
    history: tuple[float, ...] = ()
    offset: Tensor | None = None
    num_bits: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(G, M, N) what the layer multiplies by."""
        weight = self.codes.to(self.scale) * self.scale.unsqueeze(-1)
        return weight if self.offset is None else weight + self.offset.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class LayerSolution:
    """Everything ``models.convert.apply`` writes into a layer.

    Args:
        codes: int8, shape of the layer's weight.
        num_bits: Width of a code; of the widest channel's where channels differ.
        weight_scale: (out_channels,) float32; multiplies integer products (``unit`` inputs) or
            products with real inputs.
        bias: (out_channels,) float32 or ``None``.
        qparams: Input quantization, ``None`` for a float input.
        output_qparams: Output quantization, ``None`` for a float output.
        weight_offset: (out_channels,) float32 added to every weight of a channel on the scale of
            ``weight_scale``, ``None`` for none. It costs a runtime the sum of the inputs.
    """

    codes: Tensor
    num_bits: int
    weight_scale: Tensor
    bias: Tensor | None
    qparams: QParams | None
    output_qparams: QParams | None = None
    weight_offset: Tensor | None = None


@dataclass(kw_only=True)
class LayerReport:
    """One row of ``layers.json``; ``input_ranges`` (``channel_ranges``) is for the report.

    Args:
        name: Dotted name in the model.
        kind: ``'conv2d'``, ``'conv_transpose2d'`` or ``'linear'``.
        shape: Of the weight.
        role: ``'first'``, ``'last'``, ``'first+last'`` or ``'inner'``.
        weight_bits: Width of a weight code.
        activation_bits: Width of an input code, ``None`` for a float input.
        activation_mode: ``'per_tensor'``, ``'per_channel'`` or ``'ecaq'``.
        activation_symmetry: What was taken: ``'unsigned'``, ``'signed'`` or ``'asymmetric'``.
        strength: Of ECAQ, as chosen or asked for; ``None`` in other modes.
        weight_scale: Smallest and largest of the channels', real units a code step.
        activation_scale: The same of the inputs.
        error_rounding: Squared error of the layer's outputs with plain rounding, relative to
            the spread of the float outputs (to the outputs themselves where they are constant).
        error: The same with the codes taken.
        sweeps: Sweeps over all columns that the descent took.
        guard_taken: Whether plain rounding was better on held-out positions and was taken.
        calls: Calls of the layer over all calibration batches.
        rows: Sampled output positions.
        seconds: To solve the layer.
        notes: Remarks, if any.
        output_bits: Width of an output code, ``None`` for a float output.
        input_ranges: Of each channel; in ``report_data.json`` only.
        scale_search: How the input's scales were found, ``None`` for a float input.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    role: str
    weight_bits: int
    activation_bits: int | None
    activation_mode: str | None
    activation_symmetry: str | None
    strength: float | None
    weight_scale: tuple[float, float]
    activation_scale: tuple[float, float] | None
    error_rounding: float
    error: float
    sweeps: int
    guard_taken: bool
    calls: int
    rows: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    output_bits: int | None = None
    input_ranges: dict[str, Any] | None = None
    scale_search: str | None = None


@dataclass(kw_only=True)
class QuantizationReport:
    """What ``quantize_model`` did, ready for JSON.

    Args:
        layers: A row a layer, in the order of the plan.
        kept_float: What was not quantized, and why.
        folded_batch_norms: Names.
        seconds: ``calibration`` in all, of which: ``watch`` (finding out how values flow),
            ``float_forward``, ``quantized_forward``, ``sampling`` (positions taken from both),
            ``solve``, and of that ``solve_scales`` (input scales, strength),
            ``solve_statistics`` and ``solve_codes``.
        calibration: Batches, seed, processes, layers taken over from an interrupted run.
        method: The method's options.
        peak_rss_bytes: Most memory that this process ever held.
        estimated_bytes: What the calibration was expected to add to what was held before.
        refinement: What a method that refines the whole model says of that, else empty.
        selections: Steps outside of all replay points that pick rows by values of layers; the
            two passes may pick different ones.
        warnings: Sentences on what makes the result doubtful, such as a forward that is random.
    """

    layers: list[LayerReport]
    kept_float: list[FloatRemainder]
    folded_batch_norms: list[str]
    seconds: dict[str, float]
    calibration: dict[str, Any]
    method: dict[str, Any]
    peak_rss_bytes: int
    estimated_bytes: int
    refinement: dict[str, Any] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def summary(values: Tensor) -> tuple[float, float]:
    """Returns (smallest, largest) of a tensor, for reports."""
    values = values.detach().to(torch.float64)
    return (float(values.min()), float(values.max()))
