"""Quantization from the weights alone, without a calibration image."""

import torch

from mmbitsplit.functional.statistics import MOST_INPUTS_IN_DOUBLE
from mmbitsplit.methods import Method
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.solving.candidates import plain_rounding
from mmbitsplit.solving.solve_layer import Solved, layer_solution, width_notes
from mmbitsplit.structures import LayerPlan

NOTE = 'no image was looked at: errors are those of the weight'


def solve_from_weights(layer: QuantizedLayer, plan: LayerPlan, method: Method) -> Solved:
    """Quantizes one layer; its codes are those that any images would have given.

    Args:
        layer: Still in float.
        plan: Its bits.
        method: One that looks at no image.
    """
    weight = layer.float_rows()
    if weight.shape[-1] <= MOST_INPUTS_IN_DOUBLE:  # as it is with statistics
        weight = weight.double()
    solved = method.round(weight, plan.weight.num_bits)
    energy = float(weight.square().sum(dtype=torch.float64))
    error, plain = (float((rounded.weight - weight).square().sum(dtype=torch.float64))
                    / (energy or 1.0)
                    for rounded in (solved, plain_rounding(weight, plan.weight)))
    return Solved(solution=layer_solution(solved, None, None, layer.bias, layer.geometry, plan),
                  strength=None, error=error, error_rounding=plain, guard_taken=False,
                  sweeps=solved.num_sweeps, rows=0, calls=0,
                  notes=(NOTE, *width_notes(solved, None)))
