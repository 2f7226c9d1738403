"""What a unit of several widths is learned by: each group of widths against the one above it.

Source: Xu et al., PTMQ: Post-training Multi-Bit Quantization of Neural Networks, AAAI 2024, Eq. 6.
"""

from collections.abc import Callable, Sequence

from torch import Tensor


def group_distillation_loss(groups: Sequence[Tensor], mixed: Tensor, wanted: Tensor,
                            gammas: Sequence[float], distance: Callable[[Tensor, Tensor], Tensor],
                            detach_high: bool = True) -> Tensor:
    """``g1 d(mixed, float) + g2 d(middle, high) + g3 d(low, high)``.

    Args:
        groups: The unit's outputs at a width of the low, the middle and the high group.
        mixed: What the mixer makes of them.
        wanted: The output of the float unit.
        gammas: g1, g2, g3. A term of weight 0 is not computed.
        distance: Of an output and what it is to be, a scalar: the mean squared error.
        detach_high: The high group teaches and is not drawn towards the others. The paper does
            not say; with ``False`` gradients pass to it, too.

    Returns:
        A scalar.
    """
    low, middle, high = groups
    teacher = high.detach() if detach_high else high
    terms = ((gammas[0], mixed, wanted), (gammas[1], middle, teacher), (gammas[2], low, teacher))
    parts = [gamma * distance(output, target) for gamma, output, target in terms if gamma]
    return sum(parts[1:], parts[0])
