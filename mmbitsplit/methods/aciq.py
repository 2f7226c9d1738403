"""ACIQ: analytic clipping of inputs, corrected weights, and with ACIQMix a width a channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional import (
    allocate_bits,
    clipping_constant,
    correct_weights,
    round_weight,
    spread,
    weight_scale,
)
from mmbitsplit.functional.quantizers.aciq import Distribution
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.structures import WeightSolution


@register_method
@dataclass(frozen=True)
class ACIQ(RoundingMethod):
    """ACIQ (Banner et al., NeurIPS 2019) with one width for all channels.

    Differs from source: input ranges are those of the calibration images, not of each image as it
    comes, and weight codes are symmetric as everywhere in this package.

    Args:
        distribution: Of the inputs.
        weight_clipping: ``'minmax'`` (as published, weights are not clipped), or the distribution
            to clip each channel by.
        weight_correction: Restore each channel's mean and norm after rounding. The mean takes an
            offset that a runtime pays for with the sum of the inputs.
    """

    distribution: Distribution = 'laplace'
    weight_clipping: Literal['minmax', Distribution] = 'minmax'
    weight_correction: bool = True

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """A scale for every channel of the inputs, by the distribution."""
        return {'weight': {'scale_search': 'minmax'},
                'activation': {'mode': 'per_channel',
                               'scale_search': f'aciq_{self.distribution}'}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``."""
        return self._rounded(weight, *self._codes(weight, num_bits))

    def _codes(self, weight: Tensor, num_bits: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of one width: weight (..., N)."""
        scale = weight_scale(weight, num_bits, 'minmax')
        if self.weight_clipping != 'minmax':
            reach = clipping_constant(self.weight_clipping, num_bits) * spread(
                weight.flatten(0, -2), self.weight_clipping, rectified=False, centred=False)
            largest = 2 ** (num_bits - 1) - 1
            clipped = (reach.view(scale.shape) / largest).to(scale)
            scale = torch.where(clipped > 0, torch.minimum(scale, clipped), scale)
        return round_weight(weight, scale, num_bits), scale

    def _rounded(self, weight: Tensor, codes: Tensor, scale: Tensor,
                 num_bits: Tensor | None = None) -> WeightSolution:
        offset = None
        if self.weight_correction:
            scale, offset = correct_weights(weight, codes, scale)
        return rounded_at(weight, codes, scale, offset, num_bits)


@register_method
@dataclass(frozen=True)
class ACIQMix(ACIQ):
    """ACIQ with bit allocation: channels differ in width, layers keep ``num_bits`` on average.

    Weights have a width for each output channel. Inputs have one for each channel where
    ``activation.mode`` gives each a scale (``'per_channel'``, this method's default). The packed
    file stores a layer at the width of its widest channel.

    Args:
        distribution, weight_clipping, weight_correction: See ``ACIQ``.
    """

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """ACIQ's, with bit allocation for the inputs."""
        parts = super().defaults()
        return {**parts, 'activation': {**parts['activation'], 'bit_allocation': 'aciq'}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``."""
        rows = weight.flatten(0, 1)
        widths = allocate_bits(spread(rows, 'gauss', rectified=False, centred=True), num_bits)
        codes, scale = torch.empty_like(rows), torch.empty_like(rows[:, 0])
        for width in widths.unique().tolist():
            chosen = widths == width
            codes[chosen], scale[chosen] = self._codes(rows[chosen], width)
        shape = weight.shape[:2]
        return self._rounded(weight, codes.view_as(weight), scale.view(shape), widths.view(shape))
