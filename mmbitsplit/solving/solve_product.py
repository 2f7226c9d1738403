"""Finds the scales of both inputs of a product of activations, by what they do to the product.

The squared error of the product against the float product of the same inputs, those that arrive in
the quantized model. Both inputs are chosen together: all pairs of the common searches, then one
input beside the other for as long as the error falls. Candidates are found on every second batch
and judged on the others, as scales of layers are (``input_scales.choose_input``); the pair that is
chosen is found again on all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbitsplit.passes.product_capture import ProductCapture, merged_values
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import CLIPPING_GAIN
from mmbitsplit.solving.output_error import output_scale
from mmbitsplit.solving.product_scales import InputCandidate, input_candidates_of
from mmbitsplit.structures import ProductPlan, ProductSolution

MOST_ROUNDS = 3  # of one input after the other
COMMON = 3  # candidates of an input that are tried with all of the other's
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SolvedProduct:
    """Scales of a product, and what they cost.

    Args:
        solution: To be installed.
        searches: How the scales of ``a`` and ``b`` were found.
        error: Squared error of the product relative to the spread of the float one.
        error_minmax: The same with the first candidates: of ``scale_search='auto'`` the ranges.
        calls: Over all processes.
        width_errors: As ``ProductReport`` has them, of several widths.
    """

    solution: ProductSolution
    searches: tuple[str | None, str | None]
    error: float
    error_minmax: float
    calls: int
    width_errors: tuple[dict[str, float], ...] = ()


def solve_product(plan: ProductPlan, captures: Sequence[ProductCapture], team: Team | None = None,
                  ) -> SolvedProduct:
    """Finds the scales of a product; every process of the team returns the same.

    Args:
        plan: Bits and modes.
        captures: Of every call in the quantized model, this process's.
        team: The processes that hold the other calls; this one alone when not given.
    """
    team = team or Team()
    batches = sorted({batch for part in team.gather([one.batch for one in captures])
                      for batch in part})
    others = frozenset(batches[1::2]) or frozenset(batches)
    found_on = [one for one in captures if len(batches) == 1 or one.batch not in others]
    trial = _Trial(_candidates(plan, found_on, team),
                   [one for one in captures if one.batch in others], team)
    best = trial.search()
    final = _Trial(_candidates(plan, captures, team), captures, team)
    errors = final.relative_errors([best, (0, 0)])
    chosen = final.pair(best)
    return team.from_first(SolvedProduct(
        solution=ProductSolution(chosen[0].params, chosen[1].params),
        searches=(chosen[0].search, chosen[1].search),
        error=errors[best], error_minmax=errors[0, 0], calls=team.total(len(captures))))


def solve_product_widths(plan: ProductPlan, captures: Mapping[int, Sequence[ProductCapture]],
                         team: Team | None = None) -> SolvedProduct:
    """Finds the scales of a product at each of its widths, both inputs at the same.

    Args:
        plan: Of the widest, with ``widths``.
        captures: By width, of every call in the model whose layers and products before have it,
            this process's.
        team: See ``solve_product``.

    Returns:
        Figures are those of the widest.
    """
    found = {bits: solve_product(_at(plan, bits), captures[bits], team) for bits in plan.widths}
    *narrower, widest = found.values()
    falling = [one.solution for one in reversed(narrower)]
    return replace(
        widest, solution=replace(widest.solution, narrower_a=tuple(one.a for one in falling),
                                 narrower_b=tuple(one.b for one in falling)),
        width_errors=tuple({'activation_bits': bits, 'error': one.error,
                            'error_minmax': one.error_minmax} for bits, one in found.items()))


def _at(plan: ProductPlan, bits: int) -> ProductPlan:
    return replace(plan, a=replace(plan.a, num_bits=bits), b=replace(plan.b, num_bits=bits),
                   widths=())


def _candidates(plan: ProductPlan, captures: Sequence[ProductCapture], team: Team,
                ) -> dict[str, list[InputCandidate]]:
    found = {}
    for side, asked in plan.sides():
        try:
            found[side] = input_candidates_of(merged_values(captures, side, team), asked)
        except ValueError as error:  # such as symmetry='unsigned' of negative values
            raise ValueError(f"Input {side} of product '{plan.name}': {error}") from error
    return found


class _Trial:
    """Candidates of both inputs, and matrices to compare them on."""

    def __init__(self, candidates: Mapping[str, Sequence[InputCandidate]],
                 captures: Sequence[ProductCapture], team: Team):
        self.a, self.b = candidates['a'], candidates['b']
        self.captures, self.team = captures, team
        self._known: dict[Pair, float] = {}

    def pair(self, pair: Pair) -> tuple[InputCandidate, InputCandidate]:
        """The candidates of a pair."""
        return self.a[pair[0]], self.b[pair[1]]

    def search(self) -> Pair:
        """The pair of least error, where clipping must be worth it; a local optimum."""
        best = self._best((a, b) for a in range(min(COMMON, len(self.a)))
                          for b in range(min(COMMON, len(self.b))))
        for _ in range(MOST_ROUNDS):
            before = best
            best = self._best((a, best[1]) for a in range(len(self.a)))
            best = self._best((best[0], b) for b in range(len(self.b)))
            if best == before:
                break
        return best

    def relative_errors(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Errors relative to the spread of the float product."""
        spread = self._add_up([_spread(one) for one in self.captures], 2)
        scale = float(output_scale(spread[0], spread[1]))
        return {pair: error / scale for pair, error in zip(pairs, self._errors(pairs))}

    def _best(self, pairs) -> Pair:
        """Of some pairs; of equal ones the first."""
        pairs = list(pairs)
        new = [pair for pair in pairs if pair not in self._known]
        self._known.update(zip(new, self._errors(new)))
        return min(pairs, key=lambda pair: self._known[pair] / CLIPPING_GAIN ** sum(
            one.clips for one in self.pair(pair)))

    def _errors(self, pairs: Sequence[Pair]) -> list[float]:
        """Squared errors of the product over all matrices of all processes."""
        return self._add_up([torch.tensor([self._error(one, pair) for pair in pairs],
                                          dtype=torch.float64)
                             for one in self.captures], len(pairs)).tolist()

    def _error(self, capture: ProductCapture, pair: Pair) -> float:
        a, b = self.pair(pair)
        error = torch.bmm(a.rounded(capture.a, capture.heads), b.rounded(capture.b, capture.heads))
        error -= torch.bmm(capture.a, capture.b)
        return float(error.square().sum(dtype=torch.float64))

    def _add_up(self, rows: Sequence[Tensor], size: int) -> Tensor:
        """Sums what this process's captures give, in the order of batches: equal for any team."""
        mine = [(one.batch, row.tolist()) for one, row in zip(self.captures, rows)]
        by_batch = sorted((row for part in self.team.gather(mine) for row in part),
                          key=lambda row: row[0])
        total = torch.zeros(size, dtype=torch.float64)
        for _, values in by_batch:
            total += torch.tensor(values, dtype=torch.float64)
        return total


def _spread(capture: ProductCapture) -> Tensor:
    """(2,) squares of a float product: about the mean of each column, and as they are."""
    y = torch.bmm(capture.a, capture.b).double()
    return torch.stack([(y - y.mean(1, keepdim=True)).square().sum(), y.square().sum()]).cpu()
