"""Input quantizations of narrower widths, beside the one that was chosen for the widest."""

from collections.abc import Sequence
from dataclasses import replace

from mmbitsplit.functional import ActivationSamples, search_qparams
from mmbitsplit.solving.input_scales import Candidate
from mmbitsplit.structures import ActivationSpec, QParams


def narrower_inputs(samples: ActivationSamples, chosen: Candidate, spec: ActivationSpec,
                    widths: Sequence[int]) -> tuple[QParams, ...]:
    """Finds scales of each narrower width by the search that the widest's were found by.

    Scales of ``unit`` inputs are a multiple of the widest's: with several of them, all by what one
    scale for the whole tensor grows by.

    Args:
        samples: Of the input.
        chosen: Of the widest; nothing is narrower than a float input.
        spec: Of the input.
        widths: All of them.

    Returns:
        Those that are narrower than the chosen one, the widest first.
    """
    widest = chosen.qparams
    if widest is None:
        return ()
    how = dict(symmetry=spec.symmetry, search=chosen.search, norm=spec.norm)
    found = []
    tensor = search_qparams(samples, widest.num_bits, **how) if widest.unit else None
    for num_bits in sorted((bits for bits in widths if bits < widest.num_bits), reverse=True):
        if tensor is None:
            found.append(search_qparams(samples, num_bits, per_channel=True,
                                        bit_allocation=spec.bit_allocation, **how))
            continue
        one = search_qparams(samples, num_bits, **how)
        factor = float(one.scale / tensor.scale)
        zero_point = one.zero_point
        if widest.scale.numel() > 1:  # of channels that differ, each by its own scale
            zero_point = (widest.zero_point / factor).round().clamp(one.quant_min, one.quant_max)
        found.append(replace(one, scale=widest.scale * factor, zero_point=zero_point, unit=True))
    return tuple(found)
