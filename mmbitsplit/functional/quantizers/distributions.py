"""Small summaries of large tensors, for people to look at: input ranges, counts of codes."""

from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.input_ranges import ActivationSamples
from mmbitsplit.structures import QParams

MOST_CHANNELS = 256  # more than a screen is wide would only be drawn over each other
MOST_SAMPLES = 1024  # of a channel, for percentiles
TAIL = 0.01


def channel_ranges(samples: ActivationSamples, qparams: QParams | None = None,
                   most: int = MOST_CHANNELS) -> dict[str, Any]:
    """Tells the range of a layer's input channel by channel, and what its codes can hold.

    Of more than ``most`` channels, those at even steps of the order by largest magnitude are
    told: the widest, the narrowest, and the same shape between as all of them have.

    Args:
        samples: Inputs of the layer.
        qparams: How they are quantized, ``None`` for a float input.
        most: Channels that are told, at least 2.

    Returns:
        ``num_channels`` in all, and lists of one length in the order of ``channel``, its number:
        ``low`` and ``high`` over everything seen, the percentiles ``low_tail`` (1) and
        ``high_tail`` (99) of the samples, and, real values as well, ``clip_low`` and
        ``clip_high``: the smallest and the largest code (``None`` for a float input).

    Source: Bit-split paper, Figure 3.
    """
    count = samples.low.numel()
    chosen = torch.arange(count, device=samples.low.device)
    if count > most:
        order = torch.maximum(-samples.low, samples.high).argsort()
        steps = torch.linspace(0, count - 1, most, dtype=torch.float64).round().long()
        chosen = order[steps.to(order.device)].sort().values
    values = samples.values[chosen]
    values = values[:, ::max(1, values.shape[1] // MOST_SAMPLES)].float()
    tails = torch.quantile(values, torch.tensor([TAIL, 1 - TAIL], device=values.device), dim=1)
    columns = {'channel': chosen, 'low': samples.low[chosen], 'low_tail': tails[0],
               'high_tail': tails[1], 'high': samples.high[chosen]}
    if qparams is not None:
        for name, code in zip(('clip_low', 'clip_high'), qparams.limits()):
            limit = (code - qparams.zero_point) * qparams.scale
            columns[name] = limit.expand(count)[chosen]
    told = {name: column.tolist() for name, column in columns.items()}
    return {'num_channels': count, 'clip_low': None, 'clip_high': None, **told}


def code_histogram(codes: Tensor, num_bits: int, narrow_range: bool = True) -> list[int]:
    """Counts weight codes, from the smallest to the largest that there may be.

    Args:
        codes: int8, any shape.
        num_bits: 2 to 8.
        narrow_range: Whether the smallest is minus the largest; not of codes that nest by
            ``'floor'``, which have one more.
    """
    smallest, largest = code_range(num_bits, signed=True, narrow_range=narrow_range)
    shifted = (codes.flatten().to(torch.int16) - smallest).to(torch.uint8)
    return torch.bincount(shifted, minlength=largest - smallest + 1).tolist()
