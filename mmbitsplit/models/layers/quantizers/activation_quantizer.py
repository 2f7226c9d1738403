"""Quantizes what enters a layer or leaves it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mmbitsplit.functional import fake_quantize_ste, product_input_ste
from mmbitsplit.functional.quantizers.affine import along_channels
from mmbitsplit.functional.quantizers.random_drop import RandomDrop
from mmbitsplit.models.layers.quantizers.learned_values import (
    Form,
    LearnedScale,
    LearnedZeroPoint,
)
from mmbitsplit.models.layers.quantizers.learning import Learning, check_width
from mmbitsplit.structures import QParams


class Carrier(Protocol):
    """The weight quantizer of a layer, which holds the scale of unit inputs."""

    def carry(self, growth: Callable[[], Tensor]) -> None:
        """See ``WeightQuantizer.carry``."""


class ActivationQuantizer(Learning):
    """Rounds activations to an affine grid; a layer has one for its input, one for its output.

    Gradients go straight through inside the range. They reach scale and zero point where ``learn``
    says so, and ``scale`` (LSQ's) once it requires them.

    Args:
        qparams: Scale, zero point and range of codes.
        channel_dim: The dimension that per-channel parameters run along.
    """

    def __init__(self, qparams: QParams, channel_dim: int):
        super().__init__()
        self.channel_dim, self.unit = channel_dim, qparams.unit
        self.quant_min, self.quant_max = qparams.quant_min, qparams.quant_max
        # A copy: it may be learnt in place, and whoever made a solution may keep it.
        self.register_buffer('scale', qparams.scale.detach().to(torch.float32, copy=True))
        self.register_buffer('zero_point', qparams.zero_point.to(torch.int32))
        self.register_buffer('channel_max', None if qparams.channel_max is None
                             else qparams.channel_max.to(torch.uint8))
        self._drop: RandomDrop | None = None
        self._gradient_factor = False

    @property
    def qparams(self) -> QParams:
        """The parameters as they are now."""
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max,
                       unit=self.unit, channel_max=self.channel_max)

    @property
    def num_bits(self) -> int:
        """Width of a code."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are."""
        return (self.num_bits,)

    @property
    def soft(self) -> bool:
        """Whether something is being learned by ``learn``."""
        return self.learning is not None

    def forward(self, x: Tensor) -> Tensor:
        """What enters the product: codes less zero point (``unit``), or dequantized values."""
        self._weigh_gradient(x)
        qparams = self.qparams
        quantized = product_input_ste(x, qparams, self.channel_dim)
        if self._drop is None:
            return quantized
        # The weight carries the scale of what is ``unit``, quantized or not.
        return self._drop(quantized, lambda: x if not self.unit else
                          x / along_channels(qparams.scale, x, self.channel_dim))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """The dequantized values, ``unit`` or not."""
        self._weigh_gradient(x)
        quantized = fake_quantize_ste(x, self.qparams, self.channel_dim)
        return quantized if self._drop is None else self._drop(quantized, lambda: x)

    def learn(self, scale: Form | None = None, zero_point: bool = False,
              gradient_factor: bool = False, carrier: Carrier | None = None) -> None:
        """Lets gradients move the grid.

        Args:
            scale: ``'log'``: a learning rate is relative; ``'raw'``: LSQ's; ``None`` leaves it.
            zero_point: Too: a whole code in the forward (LSQ+).
            gradient_factor: Multiplies the gradient of the scale by LSQ's
                ``1 / sqrt(values a scale * quant_max)``.
            carrier: The layer's weight quantizer. Where weights carry the scale (``unit``), its
                scale then grows with it, so that the weight stays what it is in real units; of
                several such scales all grow alike, as each stands in the codes of its weights.
                Without one, weights stand still as codes see them.
        """
        if scale is not None:
            carried = self.unit and carrier is not None
            value = LearnedScale(self.scale, scale, common=carried)
            self._learn('scale', value)
            self._gradient_factor = gradient_factor
            if carried:
                carrier.carry(value.growth)
        if zero_point:
            self._learn('zero_point', LearnedZeroPoint(self.zero_point, *self.qparams.limits()))

    @torch.no_grad()
    def harden(self) -> None:
        """Ends ``learn``: a plain quantizer from here on.

        What a carrier has taken over stays with it until it is hardened itself.
        """
        hard = self.solution()
        self.learning, self._gradient_factor = None, False
        self.scale, self.zero_point = hard.scale, hard.zero_point.to(torch.int32)

    @torch.no_grad()
    def solution(self) -> QParams:
        """A copy of what it stands for now."""
        qparams = self.qparams
        return replace(qparams, scale=qparams.scale.detach().clone(),
                       zero_point=qparams.zero_point.detach().clone())

    def solutions(self) -> tuple[QParams, ...]:
        """``solution`` of each width: here there is one."""
        return (self.solution(),)

    def use(self, num_bits: int) -> None:
        """Chooses among ``widths``: here there is one."""
        check_width(num_bits, self.widths)

    @contextmanager
    def dropping(self, probability: float, generator: torch.Generator) -> Iterator[None]:
        """Leaves some elements unquantized, as they come: QDrop's. Afterwards all is as before.

        Args:
            probability: That an element is left unquantized.
            generator: Says which, by a seed that is drawn of it here: every call inside draws a
                mask of its own, and the same generator state gives the same masks.

        Raises:
            ValueError: The probability is not from 0 to 1.
        """
        before, self._drop = self._drop, RandomDrop(probability, generator)
        try:
            yield
        finally:
            self._drop = before

    def _weigh_gradient(self, x: Tensor) -> None:
        if self._gradient_factor:
            scale = self.learning['scale']
            scale.factor = (max(1, x.numel()) / scale.parameter.numel() * self.quant_max) ** -0.5

    def extra_repr(self) -> str:
        return f'codes from {self.quant_min} to {self.quant_max}, {self.scale.numel()} scale(s)'
