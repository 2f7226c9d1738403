"""Bit-split for a layer with more inputs than their gram is worth: from the rows themselves.

The gram of RetinaNet's P6 layer (N = 18432) takes 1.4 GB, and to take and factor it needs as long
as all other layers together, though 32 images leave only 9000 rows to fit to. Here only grams of
some thousand inputs at a time are taken; what links one part of the inputs to the others is the
output error, kept for every row. Each part is solved as a layer of its own, exactly as in
``bitsplit``, the others staying as they are, from the first part to the last, round after round:
coordinate descent on the same objective, in the same steps.
"""

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.bit_planes import split_bit_planes, stitch_bit_planes
from mmbitsplit.functional.quantizers.rounding import round_weight, weight_scale
from mmbitsplit.functional.solvers.coordinate_descent import sweep_
from mmbitsplit.functional.solvers.error_feedback import feedback_factor
from mmbitsplit.functional.statistics import inputs_gram
from mmbitsplit.structures import RowStatistics, WeightSolution
from mmbitsplit.structures.spec import check_bits

PART = 2304  # inputs of a part
SWEEPS = 3  # most sweeps over whole codes each time a part is visited


def solve_bitsplit_rows(rows: RowStatistics, weight: Tensor, num_bits: int, *, ridge: float,
                        init: str = 'error_feedback', polish: bool = True, max_rounds: int = 20,
                        tolerance: float = 3e-2, part: int = PART) -> WeightSolution:
    """Minimises ``||y - a q x||^2 + strength ||a q - weight||^2`` over codes q and scale a.

    Args:
        rows: Positions to fit to; centred ones are fitted with the best bias.
        weight: (G, M, N) float weight on the scale of the inputs.
        num_bits: b, 2 to 8.
        ridge: The strength, a multiple of the inputs' mean squared norm; above zero.
        init, polish: See ``bitsplit.solve_bitsplit``.
        max_rounds: Most rounds over all parts after the start.
        tolerance: A row is done when its objective fell by no more than this part in a round.
        part: Inputs solved at a time.

    Returns:
        Codes, scales, objective with the ridge's term, rounds, and the total objective after the
        start and after each round.
    """
    check_bits('num_bits', num_bits)
    state = _State(rows, weight.to(rows.x), num_bits, ridge, part)
    state.start_(init)
    for number in range(max_rounds):
        before = state.objective
        state.round_(planes=number == 0 or not polish, polish=polish)
        state.closed = state.closed | (before - state.objective <= tolerance * before)
        if state.closed.all():
            break
    return WeightSolution(state.codes.to(torch.int8), state.scale, state.objective,
                          num_sweeps=len(state.history) - 1, history=tuple(state.history))


class _State:
    """Codes, scale and output error, kept consistent while parts are solved.

    Attributes:
        error: (G, M, K) ``y - a q x``, less its mean when the rows are centred.
        objective: (G, M) float64.
    """

    def __init__(self, rows: RowStatistics, weight: Tensor, num_bits: int, ridge: float,
                 part: int):
        self.x, self.weight, self.num_bits = rows.x, weight, num_bits
        self.y = rows.y - rows.y_mean.to(rows.y).unsqueeze(-1) if rows.centred else rows.y
        self.mean = rows.x_mean.to(rows.x) if rows.centred else torch.zeros_like(rows.x[..., 0])
        num_inputs = weight.shape[-1]
        self.parts = [slice(start, min(start + part, num_inputs))
                      for start in range(0, num_inputs, part)]
        self.grams = [self._gram(inputs, rows.lowest) for inputs in self.parts]
        diagonals = [gram.diagonal(dim1=1, dim2=2) for gram in self.grams]
        mean = torch.cat(diagonals, 1).mean(1)
        self.strength = (ridge * torch.where(mean > 0, mean, 1.0)).view(-1, 1, 1)
        for diagonal in diagonals:
            diagonal += self.strength[..., 0]  # a view: the grams have the ridge from here on

    def _gram(self, inputs: slice, lowest: int | Tensor | None) -> Tensor:
        if isinstance(lowest, Tensor):
            lowest = lowest[:, inputs]
        mean = self.mean[:, inputs]
        return torch.baddbmm(inputs_gram(self.x[:, inputs], lowest, self.x.dtype),
                             mean.unsqueeze(2), mean.unsqueeze(1), alpha=-self.x.shape[-1])

    def start_(self, init: str) -> None:
        """First codes: by error feedback part after part, or by plain rounding."""
        self.scale = weight_scale(self.weight, self.num_bits, 'mse')
        self.closed = torch.zeros_like(self.scale, dtype=torch.bool)
        self.codes = round_weight(self.weight, self.scale, self.num_bits)
        first = self.weight if init == 'error_feedback' else self._real()
        self.error = self.y.clone()
        for inputs in self.parts:
            self._change_output_(first[..., inputs], inputs)
        if init == 'error_feedback':
            for inputs, gram in zip(self.parts, self.grams):
                weight = self.weight[..., inputs]
                # What is left for this part, its own float weight taken out of the output.
                cross = torch.baddbmm(self._correlation(inputs), weight, gram)
                self.codes[..., inputs] = feedback_factor(gram, cross).round(self.scale,
                                                                             self.num_bits)
                self._change_output_(self._real(inputs) - weight, inputs)
        self.history: list[float] = []
        self._fit_scale_()

    def round_(self, *, planes: bool, polish: bool) -> None:
        """Visits every part once."""
        smallest, largest = code_range(self.num_bits, signed=True, narrow_range=True)
        for inputs, gram in zip(self.parts, self.grams):
            before = self.codes[..., inputs].clone()
            codes, product = before.clone(), before @ gram
            pull = self.strength * (self.weight[..., inputs] - self._real(inputs))
            target = product + (self._correlation(inputs) + pull) / self.scale.unsqueeze(-1)
            if planes:
                split = split_bit_planes(codes, self.num_bits)
                for m in range(self.num_bits - 1):
                    sweep_(split[m], product, target, gram, step=2.0 ** m, low=-1, high=1,
                           closed=self.closed)
                codes = stitch_bit_planes(split)
            for _ in range(SWEEPS if polish else 0):
                moved = sweep_(codes, product, target, gram, step=1.0, low=smallest,
                               high=largest, closed=self.closed)
                if not moved.any():
                    break
            self.codes[..., inputs] = codes
            self._change_output_((codes - before) * self.scale.unsqueeze(-1), inputs)
        self._fit_scale_()

    def _real(self, inputs: slice = slice(None)) -> Tensor:
        return self.codes[..., inputs] * self.scale.unsqueeze(-1)

    def _correlation(self, inputs: slice) -> Tensor:
        """(G, M, P) of the output error with a part's inputs; the error has no mean."""
        return self.error @ self.x[:, inputs].mT

    def _change_output_(self, change: Tensor, inputs: slice) -> None:
        """Takes a change (G, M, P) of a part's real weights into account."""
        self.error.baddbmm_(change, self.x[:, inputs], alpha=-1)
        self.error += change @ self.mean[:, inputs].unsqueeze(2)

    def _fit_scale_(self) -> None:
        """Closed form (Eq. 4) with the ridge; keeps a scale that would not be positive."""
        output = self.y - self.error  # a q x
        scale, strength = self.scale.double(), self.strength[..., 0].double()
        correlation = (output * self.y).sum(-1, dtype=torch.float64) / scale \
            + strength * (self.codes * self.weight).sum(-1, dtype=torch.float64)
        energy = output.square().sum(-1, dtype=torch.float64) / scale.square() \
            + strength * self.codes.square().sum(-1, dtype=torch.float64)
        usable = (energy > 0) & (correlation > 0)
        best = torch.where(usable, correlation / torch.where(usable, energy, 1.0), scale)
        self.error = self.y - output * (best / scale).to(output).unsqueeze(-1)
        self.scale = best.to(self.scale)
        pull = (self._real() - self.weight).square_().sum(-1, dtype=torch.float64)
        self.objective = self.error.square().sum(-1, dtype=torch.float64) + strength * pull
        self.history.append(float(self.objective.sum()))
