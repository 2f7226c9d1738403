"""Random vectors whose covariance is the curvature of a loss at the float model's raw outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns +1 and -1 by turns of a CPU generator, of the shape, type and device of a tensor."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.to(like.device).to(like.dtype) * 2 - 1


def of_squared_error(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """For the squared error of one layer's outputs relative to their spread: signs over its root.

    Args:
        outputs: Of all calls of the layer on an image.
        generator: Draws the signs.

    Returns:
        A vector an output. Outputs that are all alike are told in parts of their size.
    """
    values = [output.double() for output in outputs]
    square = sum(float(value.square().sum()) for value in values)
    total, count = sum(float(value.sum()) for value in values), sum(map(torch.numel, values))
    spread = square - total * total / max(1, count)
    size = spread if spread > 1e-10 * square else square or 1.0
    return [signs(output, generator) / size ** 0.5 for output in outputs]


def of_divergence(logits: Tensor, generator: torch.Generator) -> Tensor:
    """For the divergence of class probabilities p: covariance diag(p) - p p^T in each row.

    Args:
        logits: (..., classes).
        generator: Draws signs r; the vector is sqrt(p) r - p (sqrt(p) . r).
    """
    p = logits.softmax(-1)
    drawn = p.sqrt() * signs(logits, generator)
    return drawn - p * drawn.sum(-1, keepdim=True)


def confidence(outputs: Sequence[Tensor]) -> dict[tuple[int, ...], Tensor]:
    """How sure a dense head is at each place: the surest class of the least sure of its outputs.

    Class scores and objectness are logits, most of them far below zero. Box offsets are not, but
    their largest is near or above zero nearly everywhere, so that they hardly count in the least.

    Args:
        outputs: (B, C, H, W) or (..., C). Those of one size are of one pyramid level.

    Returns:
        By ``place_of`` an output, what all channels there count: from 0 to 1, one channel.
    """
    found: dict[tuple[int, ...], Tensor] = {}
    for output in outputs:
        place, dim = place_of(output), 1 if output.dim() == 4 else -1
        score = output.amax(dim, keepdim=True).sigmoid()
        found[place] = torch.minimum(found[place], score) if place in found else score
    return found


def place_of(output: Tensor) -> tuple[int, ...]:
    """What outputs of one pyramid level have in common: their shape without channels."""
    shape = [*output.shape]
    del shape[1 if output.dim() == 4 else -1]
    return len(output.shape), *shape
