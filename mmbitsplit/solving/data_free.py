"""Quantization from the weights alone, without a calibration image."""

import torch
from torch import Tensor

from mmbitsplit.functional.statistics import MOST_INPUTS_IN_DOUBLE
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.solving.candidates import plain_rounding
from mmbitsplit.solving.solve_layer import Solved, layer_solution, width_notes
from mmbitsplit.structures import EmbeddingPlan, LayerPlan, LayerSolution, WeightSolution

NOTE_OF_TABLE = ('its rows are looked up, not multiplied: each is rounded on a scale of its own, '
                 'and errors are those of the weight')
NOTE = 'no image was looked at: errors are those of the weight'


def solve_from_weights(layer: QuantizedLayer, plan: LayerPlan, method: Method,
                       given: LayerSolution | None = None) -> Solved:
    """Quantizes one layer; its codes are those that any images would have given.

    Args:
        layer: Still in float.
        plan: Its bits.
        method: One that looks at no image.
        given: See ``solve_layer``.
    """
    weight = layer.float_rows()
    if weight.shape[-1] <= MOST_INPUTS_IN_DOUBLE:  # as it is with statistics
        weight = weight.double()
    if given is None:
        solved = method.round(weight, plan.weight.num_bits)
    else:
        scale = given.weight_scale.unsqueeze(0)
        solved = WeightSolution(given.codes.unsqueeze(0), scale, torch.zeros_like(scale))
    energy = float(weight.square().sum(dtype=torch.float64))
    error, plain = (float((rounded.weight - weight).square().sum(dtype=torch.float64))
                    / (energy or 1.0)
                    for rounded in (solved, plain_rounding(weight, plan.weight)))
    return Solved(solution=layer_solution(solved, None, None, layer.product_bias, layer.geometry,
                                          plan),
                  strength=None, error=error, error_rounding=plain, guard_taken=False,
                  sweeps=solved.num_sweeps, rows=0, calls=0,
                  notes=(NOTE, *width_notes(solved, None)))


def round_table(weight: Tensor, plan: EmbeddingPlan) -> Solved:
    """Rounds an embedding's rows, each on the scale that makes its squared error least.

    How often a row is looked up changes nothing: no other row has its scale.

    Args:
        weight: (rows, channels) float.
        plan: Width, and how scales are searched.
    """
    weight = weight.detach().float()
    rounded = plain_rounding(weight.unsqueeze(0), plan.weight)
    error = float((rounded.weight[0] - weight).square().sum(dtype=torch.float64)) / (
        float(weight.square().sum(dtype=torch.float64)) or 1.0)
    return Solved(
        solution=LayerSolution(codes=rounded.codes[0], num_bits=plan.weight.num_bits,
                               weight_scale=rounded.scale[0], bias=None, qparams=None),
        strength=None, error=error, error_rounding=error, guard_taken=False, sweeps=0, rows=0,
        calls=0, notes=(NOTE_OF_TABLE,))
