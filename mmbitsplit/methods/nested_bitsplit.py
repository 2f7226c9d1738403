"""One model for several widths: codes whose leading bits are those of every narrower width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from mmbitsplit.functional import add_ridge, check_widths, solve_nested
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.bitsplit import FEW_BITS, LEARNING, ROUNDS, BitSplit
from mmbitsplit.structures import LayerStatistics, QuantSpec, Range, WeightSolution
from mmbitsplit.structures.widths import Bits


@register_method
@dataclass(frozen=True)
class NestedBitSplit(BitSplit):
    """Bit-split for several widths at once, stored as one.

    Every width's codes are the leading bits of the widest's; scales, offset and bias are its own.
    Codes minimise the output errors of all widths together, each on inputs of its own: every
    image runs once at each width (``branches``). First and last layers, and those whose width is
    said elsewhere, have one width and are solved as by ``BitSplit``.

    Args:
        widths: Of the weights, 2 to 8, rising.
        activation_widths: Of the inputs; ``'tied'``: those of the weights, used together, unless
            the request says one width for all (``activation.num_bits``).
        nesting: ``'floor'``: two's complement, weights ``scale * (code + 1/2)``, cells of a width
            are halves of those of the next narrower. ``'planes'``: Bit-split's planes; the cell
            of zero is twice as wide at each narrower width.
        order: ``'joint'``: codes for all widths at once. ``'up'``: the narrowest by itself, then
            of each wider one the bits that are left.
        reference_bits: Of ``'joint'``: how bad wide widths may become for the sake of narrow ones:
            about as bad as this many bits by themselves.
        branches: At which widths each image runs: ``'all'``; ``'auto'``: of those from 6 bits on,
            whose layers give much the same, at the widest alone; or at so many, evenly among them.
            Fewer save forwards and memory; other widths are solved on inputs of the nearest.
        init, polish, max_sweeps, tolerance, ridge, bias_correction, guard, effort: As of
            ``BitSplit``.
    """

    widths: Sequence[Bits] = (3, 4, 6, 8)
    activation_widths: Literal['tied'] | Sequence[Bits] = 'tied'
    nesting: Literal['floor', 'planes'] = 'floor'
    order: Literal['joint', 'up'] = 'joint'
    reference_bits: Annotated[int, Range(2, 8)] = 3
    branches: Literal['auto', 'all'] | Annotated[int, Range(1)] = 'auto'

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.widths)
        if self.activation_widths != 'tied':
            check_widths(self.activation_widths, 'activation_widths')

    def tuning(self, spec: QuantSpec) -> Sequence[Mapping[str, Any]]:
        """See ``Method.tuning``: scales and biases alone, as all widths have the codes."""
        inputs = self.input_widths(spec)
        if self.effort == 'fast' or not any(map(self.tunes, inputs)):
            return ()
        return [{**LEARNING, 'codes': False, 'input_scales': False,
                 'rounds': ROUNDS.get(self.effort)}]

    def tunes(self, input_bits: int | None) -> bool:
        """See ``Method.tunes``."""
        return self.effort == 'best' or input_bits is not None and input_bits <= FEW_BITS

    def solve_widths(self, statistics: Sequence[LayerStatistics], weights: Sequence[Tensor],
                     widths: Sequence[int]) -> WeightSolution:
        """See ``Method.solve_widths``."""
        if len(widths) == 1:
            return self.solve(statistics[0], weights[0], widths[0])
        sums = [add_ridge(one, weight, self.ridge) for one, weight in zip(statistics, weights)]
        return solve_nested(sums, weights, widths, nesting=self.nesting, order=self.order,
                            reference_bits=self.reference_bits, max_sweeps=self.max_sweeps,
                            tolerance=self.tolerance)
