"""Ways to quantize an input of a product of activations, and what they do to sampled matrices."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.functional import ActivationSamples, fake_quantize, search_qparams
from mmbitsplit.models.layers.quantizers.log2_quantizer import log2_round_trip
from mmbitsplit.solving.input_scales import SEARCHES
from mmbitsplit.structures import Log2Params, ProductInput, QParams

# Parts of the range that are tried where codes are few; with more, 'mse' and 'minmax' are as good.
CLIPS = tuple(0.85 ** step for step in range(1, 13))
MOST_BITS_TO_CLIP = 6


@dataclass(frozen=True)
class InputCandidate:
    """A way to quantize an input of a product.

    Args:
        params: ``None`` for a float input.
        search: How it was found, for the report; ``None`` for a float input.
        clips: Whether it leaves a part of the range without codes.
    """

    params: QParams | Log2Params | None
    search: str | None = None
    clips: bool = False

    def rounded(self, x: Tensor, heads: Tensor) -> Tensor:
        """What becomes of matrices (n, R, K), of which ``heads`` (n,) says the heads."""
        if self.params is None:
            return x
        if isinstance(self.params, Log2Params):
            return log2_round_trip(x, self.params.num_bits)
        if self.params.scale.numel() == 1:
            return fake_quantize(x, self.params, -1)
        return fake_quantize(x, replace(self.params, scale=self.params.scale[heads],
                                        zero_point=self.params.zero_point[heads]), 0)


def input_candidates_of(values: ActivationSamples, plan: ProductInput) -> list[InputCandidate]:
    """Lists the ways that a plan leaves open, the likeliest first; the same number for all values.

    Args:
        values: Of the input, with its range; of one channel, or one a head.
        plan: Bits and modes.
    """
    if plan.num_bits is None:
        return [InputCandidate(None)]
    if plan.softmax == 'log2':
        return [InputCandidate(Log2Params(plan.num_bits), 'log2')]
    searches = SEARCHES if plan.scale_search == 'auto' else (plan.scale_search,)
    found = [InputCandidate(replace(search_qparams(
        values, plan.num_bits, symmetry=plan.symmetry, per_channel=plan.granularity == 'head',
        search=search, norm=plan.norm), unit=True), search, search != 'minmax')
        for search in searches]
    if plan.scale_search != 'auto':
        return found
    ends = found[0].params
    assert isinstance(ends, QParams)
    if plan.softmax is not None and plan.symmetry in ('auto', 'unsigned'):
        found.append(InputCandidate(replace(
            ends, scale=torch.full_like(ends.scale, 1 / ends.quant_max)), 'unit'))
    if plan.num_bits <= MOST_BITS_TO_CLIP:
        found += [InputCandidate(replace(ends, scale=ends.scale * part), f'clip {part:.2g}', True)
                  for part in CLIPS]
    return found
