"""What is quantized between the layers of a unit: left out, or its scales learned."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.random_drop import RandomDrop
from mmbitsplit.methods.unit_problem import UnitLayer, UnitProblem


@contextmanager
def dropped_quantization(problem: UnitProblem, probability: float, generator: torch.Generator,
                         ) -> Iterator[None]:
    """Leaves elements of a unit's inner inputs, outputs and residual streams unquantized at random
    inside.

    Args:
        problem: The unit.
        probability: That an element is.
        generator: Of the step.
    """
    with ExitStack() as stack:
        for layer in problem.layers.values():
            for quantizer in (layer.input_quantizer, layer.output_quantizer):
                if quantizer is not None:
                    stack.enter_context(quantizer.dropping(probability, generator))
        stack.enter_context(problem.streams(RandomDrop(probability, generator)))
        yield


def own_scales(problem: UnitProblem) -> dict[str, tuple[UnitLayer, Any]]:
    """Layers and activation quantizers by name of the scale, but for those of residual streams,
    which others share."""
    streams = {layer.plan.stream for layer in problem.layers.values()}
    found = {}
    for name, layer in problem.layers.items():
        if layer.input_quantizer is not None and not layer.plan.stream:
            found[f'{name}.input_scale'] = layer, layer.input_quantizer
        if layer.output_quantizer is not None and name not in streams:
            found[f'{name}.output_scale'] = layer, layer.output_quantizer
    return found


def learn_scales(problem: UnitProblem, gradient_factor: bool = False) -> dict[str, Tensor]:
    """Lets gradients move the scales of what is quantized in a unit, as they are (LSQ).

    Biases are the float ones from here on, not in whole steps of scales that move.

    Args:
        problem: The unit.
        gradient_factor: LSQ's, on the gradients.

    Returns:
        ``own_scales``, to be learned, by name.
    """
    for layer in problem.layers.values():
        if layer.bias is not None:
            layer.weight_quantizer.bias.copy_(layer.bias)
    found = {}
    for name, (layer, quantizer) in own_scales(problem).items():
        quantizer.learn('raw', gradient_factor=gradient_factor, carrier=layer.weight_quantizer)
        found[name] = quantizer.learned()['scale']
    return found
