"""Codes, scales and zero points: what calibration finds for a layer."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch
from torch import Tensor

# How the codes of narrower widths are made of the widest's; see ``functional.narrower_codes``.
Nesting = Literal['planes', 'floor']


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

    @property
    def num_bits(self) -> int:
        """Width of a code; of the widest channel's where channels differ."""
        return (self.quant_max - self.quant_min).bit_length()

    def limits(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest code, (1,) or (C,), on the device of the scale."""
        if self.channel_max is None:
            one = self.scale[:1]
            return torch.full_like(one, self.quant_min), torch.full_like(one, self.quant_max)
        high = self.channel_max.to(self.scale)
        return (-high - 1 if self.quant_min < 0 else torch.zeros_like(high)), high


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
        narrower: By number of bits, solutions for widths that the layer can be switched to.
        nesting: How codes of ``narrower`` are made of these, ``None`` where they are their own.
    """

    codes: Tensor
    scale: Tensor
    objective: Tensor
    _: KW_ONLY
    num_sweeps: int = 0
    history: tuple[float, ...] = ()
    offset: Tensor | None = None
    num_bits: Tensor | None = None
    narrower: Mapping[int, 'WeightSolution'] = field(default_factory=dict)
    nesting: Nesting | None = None

    @property
    def weight(self) -> Tensor:
        """(G, M, N) what the layer multiplies by."""
        weight = self.codes.to(self.scale) * self.scale.unsqueeze(-1)
        return weight if self.offset is None else weight + self.offset.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class LayerSolution:
    """Everything ``models.apply`` writes into a layer.

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
        narrower: Solutions for fewer bits that the layer can be switched to
            (``QuantizedLayer.use``); of theirs, codes, scale, offset and bias count. Codes may be
            ``None`` where ``nesting`` says how they are made.
        narrower_inputs: Input quantizations of fewer bits, each of which goes with each width of
            the weight. Of ``unit`` inputs every scale is a multiple of that of ``qparams``, and
            the layer multiplies its weight by it (``functional.input_factor``).
        narrower_outputs: Output quantizations of fewer bits.
        nesting: How codes of narrower widths are made of ``codes``; ``None`` where each has codes
            of its own. ``'floor'`` has the full range of two's complement, and an offset of half
            a step.
    """

    codes: Tensor | None
    num_bits: int
    weight_scale: Tensor
    bias: Tensor | None
    qparams: QParams | None
    output_qparams: QParams | None = None
    weight_offset: Tensor | None = None
    narrower: tuple['LayerSolution', ...] = ()
    narrower_inputs: tuple[QParams, ...] = ()
    narrower_outputs: tuple[QParams, ...] = ()
    nesting: Nesting | None = None
