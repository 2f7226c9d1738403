"""Chooses how outputs are quantized, where ``activation.placement`` asks for it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from mmbitsplit.functional import (
    ActivationSamples,
    input_factor,
    narrower_qparams,
    quantization_error,
    search_qparams,
    weight_rows,
)
from mmbitsplit.passes.capture import SAMPLES_PER_LAYER, CallCapture, merge_samples
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import CLIPPING_GAIN, SEARCHES, Candidate
from mmbitsplit.structures import (
    ActivationSpec,
    LayerGeometry,
    LayerPlan,
    LayerSolution,
    QParams,
)


def search_output_qparams(solution: LayerSolution, candidate: Candidate,
                          captures: Sequence[CallCapture], geometry: LayerGeometry,
                          plan: LayerPlan, team: Team) -> QParams:
    """Minimises the squared error of rounding what the solved layer gives, one scale for all.

    Args:
        solution: Codes, scales and bias; the same in every process.
        candidate: The input quantization.
        captures: Of this process's calls; their sampled positions are looked at.
        geometry: Of the layer.
        plan: Its plan, with an output.
        team: Who holds the other calls.

    Returns:
        (1,) scale and zero point. Where all readers rectify, the codes of negative outputs are
        given to the positive ones: rounding then does what the ReLU does.
    """
    seen = team.total(sum(capture.held_out.numel() for capture in captures))
    step = max(1, seen // SAMPLES_PER_LAYER)
    found: list[CallCapture] = []
    weight = product_rows(solution, geometry, captures[0].patches) if captures else None
    for capture in captures:
        outputs = layer_outputs(weight, solution.bias, candidate.inputs(capture.patches, geometry))
        if plan.output.rectified:
            outputs.clamp_(min=0)
        if outputs.shape[1]:  # else no box on this image
            low, high = outputs.aminmax(dim=1)
            found.append(replace(capture, samples=outputs[:, ::step].clone(), low=low, high=high))
    samples = merge_samples(found, team)
    search = plan.activation.scale_search
    if search == 'auto':
        search = _settled_search(samples, plan.output.num_bits)
    return search_qparams(samples, plan.output.num_bits, search=search, norm=plan.activation.norm)


def at_widths(search: Callable[[int], QParams], widths: Sequence[int]) -> list[QParams]:
    """How a tensor is quantized at each width, as layers that read it can have it.

    Args:
        search: Finds scale and zero point for a number of bits.
        widths: All of them, rising.

    Returns:
        The widest first; of the others the scale is what was found, zero points follow from the
        widest's, as files have the inputs of layers (``narrower_qparams``).
    """
    widest = search(widths[-1])
    return [widest, *(narrower_qparams(widest, input_factor(search(bits), widest), bits)
                      for bits in reversed(widths[:-1]))]


def stream_scale(samples: ActivationSamples, num_bits: int, how: ActivationSpec | None) -> QParams:
    """Scale and zero point of a residual stream, one for the whole tensor.

    Args:
        samples: What the float model has there.
        num_bits: Width of a code.
        how: Of a layer that reads it: its search and symmetry; ``None`` for the defaults.
    """
    how = how or ActivationSpec()
    search = how.scale_search
    if search == 'auto':
        search = _settled_search(samples, num_bits)
    return search_qparams(samples, num_bits, symmetry=how.symmetry, search=search, norm=how.norm)


def _settled_search(samples: ActivationSamples, num_bits: int) -> str:
    """Of the searches for inputs the one of least error on samples that it has not seen."""
    seen, others = samples.values[:, ::2].contiguous(), samples.values[:, 1::2].contiguous()
    best, least = SEARCHES[0], math.inf
    for search in SEARCHES if others.numel() else ():
        qparams = search_qparams(replace(samples, values=seen), num_bits, search=search)
        error = float(quantization_error(others, qparams).sum())
        if error < least:
            best, least = search, error * (CLIPPING_GAIN if search == SEARCHES[0] else 1.0)
    return best


def product_rows(solution: LayerSolution, geometry: LayerGeometry, like: Tensor) -> Tensor:
    """The weight (G, M, N) of a solution, on the scale of its product, in the dtype of ``like``."""
    rows = weight_rows(solution.codes, geometry)
    scale = solution.weight_scale.view(rows.shape[:2]).to(like)
    weight = rows.to(like) * scale.unsqueeze(-1)
    if solution.weight_offset is not None:
        weight += solution.weight_offset.view(rows.shape[:2]).to(like).unsqueeze(-1)
    return weight


def layer_outputs(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """Outputs (out_channels, K) of a layer; inputs (G, N, K) enter the product."""
    outputs = (weight @ inputs).flatten(0, 1)
    return outputs if bias is None else outputs.add_(bias.to(outputs).unsqueeze(1))
