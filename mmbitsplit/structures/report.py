"""What a calibration says of itself, a row a layer, ready for JSON."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.structures.plan import FloatRemainder, Selection
from mmbitsplit.structures.products import ProductReport
from mmbitsplit.structures.units import Unit


@dataclass(kw_only=True)
class LayerReport:
    """One row of ``layers.json``; ``input_ranges`` (``channel_ranges``) is for the report.

    Args:
        name: Dotted name in the model.
        kind: ``'conv2d'``, ``'conv_transpose2d'``, ``'linear'`` or ``'embedding'``.
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
        candidates: Error of each solution that was there to choose from, by name; ``'rounding'``
            where the guard is on. The least is taken.
        unit: The reconstruction unit that the layer belongs to, by name.
        unit_errors: Output error of the layer's unit by candidate, where the method solves units;
            ``'layers'`` is what solving layer by layer gave.
        unit_taken: Name of the candidate that was taken.
        unit_figures: By candidate, what its method says of it in numbers.
        width_errors: Of several widths, the errors at each pair that was solved together, rising:
            ``weight_bits``, ``activation_bits`` (of its input, ``None`` in float), ``error``,
            ``error_rounding``, and ``of``: ``'layer'``, or ``'unit'`` for those of the outputs of
            the layer's whole unit.
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
    candidates: dict[str, float] = field(default_factory=dict)
    unit: str | None = None
    unit_errors: dict[str, float] = field(default_factory=dict)
    unit_taken: str | None = None
    unit_figures: dict[str, dict[str, float]] = field(default_factory=dict)
    width_errors: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class QuantizationReport:
    """What ``quantize_model`` did, ready for JSON.

    Args:
        layers: A row a layer, embeddings first, then in the order of the plan.
        kept_float: What was not quantized, and why.
        folded_batch_norms: Names.
        seconds: ``calibration`` in all, of which: ``watch`` (finding out how values flow),
            ``float_forward``, ``quantized_forward``, ``sampling`` (positions taken from both),
            ``solve``, and of that ``solve_scales`` (input scales, strength),
            ``solve_statistics`` and ``solve_codes``; ``refine`` where a method refines the model,
            ``tuning`` where stages tune it.
        calibration: Batches, seed, processes, layers taken over from an interrupted run; where
            units are solved, how often each image was run.
        method: The method's options.
        peak_rss_bytes: Most memory that this process ever held.
        estimated_bytes: What the calibration was expected to add to what was held before.
        refinement: What a method that refines the whole model says of that, else empty.
        selections: Steps outside of all replay points that pick rows by values of layers; the
            two passes may pick different ones.
        warnings: Sentences on what makes the result doubtful, such as a forward that is random.
        units: Which layers belong together, and why those that stand alone do.
        plan: As ``plan.json`` has it (``plan_value``); can be given back.
        tuning: What each stage says that changed the whole model, in order.
        budget: How widths were chosen, where they were: ``PlanChoice.to_json()``.
        products: A row a product of activations, in the order of the plan.
        multiplications: How many a watched batch made (``total``), and shares of them, 0 to 1:
            ``quantized``, of which ``layers`` and ``products``, and the part of these with
            ``one_float`` factor, such as the image. The rest stands in ``kept_float``.
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
    units: list[Unit] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    tuning: list[dict[str, Any]] = field(default_factory=list)
    budget: dict[str, Any] = field(default_factory=dict)
    products: list[ProductReport] = field(default_factory=list)
    multiplications: dict[str, float] = field(default_factory=dict)


def width_summary(layers: Iterable[LayerReport]) -> dict[str, dict[str, float] | None]:
    """Returns mean, least and most bits of ``'weight'`` and ``'activation'`` codes.

    Means count each layer by its weights. Float inputs count as no width; ``None`` where all
    inputs are float.
    """
    layers = list(layers)
    return {what: _widths([(getattr(layer, f'{what}_bits'), math.prod(layer.shape))
                           for layer in layers]) for what in ('weight', 'activation')}


def _widths(counted: list[tuple[int | None, int]]) -> dict[str, float] | None:
    known = [(bits, weights) for bits, weights in counted if bits is not None]
    if not known:
        return None
    total = sum(weights for _, weights in known)
    return {'mean': sum(bits * weights for bits, weights in known) / total,
            'min': min(known)[0], 'max': max(known)[0]}


def summary(values: Tensor) -> tuple[float, float]:
    """Returns (smallest, largest) of a tensor, for reports."""
    values = values.detach().to(torch.float64)
    return (float(values.min()), float(values.max()))
