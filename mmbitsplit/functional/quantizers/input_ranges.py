"""Which part of a layer's input range the codes share, found without trying scales out."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.aciq import Distribution, clipping_constant, spread
from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.entropy import entropy_threshold

ACIQ = {f'aciq_{name}': name for name in get_args(Distribution)}
RANGE_SEARCHES = ('minmax', 'kl', *ACIQ)
SAMPLES_FOR_TENSOR = 1 << 19  # values that the search for one scale looks at, about


@dataclass(frozen=True)
class ActivationSamples:
    """What a scale search looks at.

    Args:
        values: (C, S) sampled inputs of the layer.
        low, high: (C,) smallest and largest input over everything seen, not only the samples.
    """

    values: Tensor
    low: Tensor
    high: Tensor

    def pooled(self) -> 'ActivationSamples':
        """As of one channel; of many channels fewer positions say as much about one range."""
        every = max(1, self.values.numel() // SAMPLES_FOR_TENSOR)
        return ActivationSamples(self.values[:, ::every].contiguous(),
                                 self.low.min().reshape(1), self.high.max().reshape(1))

    def channels(self, chosen: Tensor) -> 'ActivationSamples':
        """Some of the channels."""
        return ActivationSamples(self.values[chosen], self.low[chosen], self.high[chosen])


def input_range(samples: ActivationSamples, num_bits: int, symmetry: str, search: str,
                ) -> tuple[Tensor, Tensor]:
    """Returns the low and the high end that the outermost codes stand for.

    Args:
        samples: One range for all channels where ``low`` has one entry.
        num_bits: 2 to 8.
        symmetry: ``'unsigned'``, ``'signed'`` or ``'asymmetric'``.
        search: One of ``RANGE_SEARCHES``.

    Returns:
        (C,) or (1,) each, within what was seen.
    """
    if search == 'minmax':
        return samples.low, samples.high
    values = samples.values if samples.low.numel() > 1 else samples.values.reshape(1, -1)
    if search == 'kl':
        levels = code_range(num_bits, signed=symmetry != 'unsigned')[1] + 1
        top = entropy_threshold(values, levels).to(samples.high)
        return -top, top
    # An asymmetric range lies around the mean, the others around zero.
    middle = values.double().mean(1) if symmetry == 'asymmetric' else 0.0
    rectified = symmetry == 'unsigned'
    reach = clipping_constant(ACIQ[search], num_bits, half_range=rectified) * spread(
        values, ACIQ[search], rectified=rectified, centred=symmetry == 'asymmetric')
    reach = torch.where(reach > 0, reach, torch.inf)  # a constant, or too few samples to see
    return (torch.maximum(samples.low, (middle - reach).to(samples.low)),
            torch.minimum(samples.high, (middle + reach).to(samples.high)))
