"""One choice a layer, least sum, within limits: solved exactly.

A branch and bound over all variables takes up to a minute for 200 layers with 16 choices. Nearly
all of them can be left out beforehand. The linear program gives a lower bound, and by each
variable's reduced cost how far every plan that has this choice lies above it. A plan is searched
among the choices that lie least above; then only those can be better that lie less above than it
does: a core of one or two choices a layer.

Source: the core of a multiple-choice knapsack (Pisinger, EJOR 83, 1995, section 3), for any number
    of limits.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BESIDE = 40  # choices in the first core, beside those that the linear program takes itself
ROUGHLY = 1e-3  # gap at which a first plan is good enough to find the core by
WIDER = 4.0
# Rows are scaled to this, since HiGHS is content with what lies 1e-6 off; the objective so that
# what is still open is 10.
ROW, OPEN = 1e3, 10.0
MOST_CUTS = 100
_DONE, _STOPPED = 0, 1  # of scipy's status


@dataclass(frozen=True)
class Choices:
    """What can be chosen: V variables, of which each layer has one that is 1.

    Args:
        layers: (V,) number of the layer, in order from 0.
        ties: (E, V) sparse: sums that must be 0.
        classes: (V,) choices of a layer with equal numbers are the same to ``ties``.
    """

    layers: np.ndarray
    ties: Any
    classes: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """The best that was found.

    Args:
        mask: (V,) which choices; ``None`` where no plan keeps the limits.
        bound: No plan has a lower sum.
        finished: Whether the search ended by itself.
    """

    mask: np.ndarray | None
    bound: float = math.nan
    finished: bool = True


def minimize(choices: Choices, objective: np.ndarray, costs: Sequence[np.ndarray] = (),
             limits: Sequence[float] = (), *, gap: float = 0.0, seconds: float = 60.0) -> Chosen:
    """Finds the choices with the least sum of an objective within all limits.

    Args:
        choices: One a layer.
        objective: (V,) of each choice.
        costs: (V,) a limit.
        limits: Most of their sums.
        gap: Part of the sum (above each layer's least) by which the result may be worse than the
            optimum.
        seconds: After which the best that was found is returned.
    """
    if not len(objective):
        kept = all(within(limit) >= 0 for limit in limits)
        return Chosen(np.zeros(0, bool) if kept else None, 0.0)
    ends = time.monotonic() + seconds
    useful = _useful(choices, [objective, *costs])
    problem = _Problem(choices, useful, objective, costs, limits, ends)
    bound, above = problem.relaxed()
    if above is None:
        return Chosen(None)
    spread = np.sort(above[above > 0])
    width = float(spread[min(BESIDE, len(spread) - 1)]) if len(spread) else 0.0
    while True:
        core = above <= width
        found = problem.solve(core, max(gap, ROUGHLY), scale=width)
        if found.mask is not None or not found.finished or core.all():
            break
        width = max(WIDER * width, float(spread[0]) if len(spread) else 0.0)
    if found.mask is None:
        return found
    left = float(objective[found.mask].sum()) - bound
    if left <= 1e-9 * float(np.ptp(objective)):
        return Chosen(found.mask, bound)
    better = problem.solve(above <= left * (1 + 1e-6), gap, scale=left)
    if better.mask is None or objective[better.mask].sum() > objective[found.mask].sum():
        better = Chosen(found.mask, bound, better.finished)
    return Chosen(better.mask, max(bound, better.bound) if better.finished else bound,
                  better.finished)


class _Problem:
    """The program of the useful variables alone, each row less what each layer costs at least."""

    def __init__(self, choices: Choices, useful: np.ndarray, objective: np.ndarray,
                 costs: Sequence[np.ndarray], limits: Sequence[float], ends: float):
        from scipy.sparse import coo_array, vstack

        self.useful, self.ends, self.size = np.flatnonzero(useful), ends, len(useful)
        self.layers = choices.layers[self.useful]
        self.objective, self.least = _above_least(objective[self.useful], self.layers)
        one = coo_array((np.ones(len(self.useful)), (self.layers, np.arange(len(self.useful)))))
        ties = choices.ties.tocsc()[:, self.useful]
        self.equal = vstack([one, ties]).tocsc()
        self.sides = np.r_[np.ones(one.shape[0]), np.zeros(ties.shape[0])]
        self.costs, self.limits = np.zeros((len(limits), len(self.useful))), np.zeros(len(limits))
        for number, (cost, limit) in enumerate(zip(costs, limits)):
            row, least = _above_least(cost[self.useful], self.layers)
            most = float(row.max(initial=0.0))
            scale = ROW / most if most > 0 else 1.0  # one useful choice a layer: nothing to scale
            self.costs[number], self.limits[number] = scale * row, scale * (limit - least)
        self.exact = [(cost, limit) for cost, limit in zip(costs, limits)]

    def relaxed(self) -> tuple[float, np.ndarray | None]:
        """The linear program: a lower bound, and of each variable how far it is above.

        ``None`` where even that keeps no limits.
        """
        from scipy.optimize import linprog

        scale = ROW / max(float(self.objective.max(initial=0.0)), 1e-300)
        found = linprog(scale * self.objective, self.costs if len(self.costs) else None,
                        self.limits if len(self.costs) else None, self.equal, self.sides,
                        bounds=(0, None), method='highs')
        if found.x is None:
            return math.nan, None
        return found.fun / scale + self.least, np.maximum(0.0, found.lower.marginals) / scale

    def solve(self, core: np.ndarray, gap: float, scale: float) -> Chosen:
        """The integer program of some variables; ``scale``: what is open of the objective."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        core = np.flatnonzero(core)
        objective = self.objective[core] * (OPEN / scale if scale > 0 else 1.0)
        rules = [LinearConstraint(self.equal[:, core], self.sides, self.sides)]
        if len(self.costs):
            rules.append(LinearConstraint(self.costs[:, core], -np.inf, self.limits))
        for _ in range(MOST_CUTS):
            left = max(0.1, self.ends - time.monotonic())
            found = milp(objective, integrality=np.ones(len(core)), bounds=Bounds(0, 1),
                         constraints=rules, options={'mip_rel_gap': gap, 'time_limit': left})
            if found.x is None:
                return Chosen(None, finished=found.status != _STOPPED)
            taken = np.round(found.x)
            mask = np.zeros(self.size, bool)
            mask[self.useful[core[taken > 0]]] = True
            # Some releases of HiGHS call "optimal" what breaks the equations (SciPy issue 24141).
            if np.array_equal(self.equal[:, core] @ taken, self.sides) and all(
                    cost[mask].sum() <= within(limit) for cost, limit in self.exact):
                bound = self.least + (found.mip_dual_bound * scale / OPEN if scale > 0
                                      else float('-inf'))
                return Chosen(mask, bound, found.status == _DONE)
            # Within the solver's tolerance and not within the rules: this plan is none.
            rules.append(LinearConstraint(taken[None], -np.inf, taken.sum() - 1))
        return Chosen(None, finished=False)


def check_solver() -> None:
    """Raises ``ImportError`` where SciPy is missing; says how to get it."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError("Widths by budget need the package 'scipy': pip install "
                          "'mmbitsplit[budget]'.") from error


def within(limit: float) -> float:
    """A limit with the room that a sum of floating numbers needs."""
    return limit + 1e-9 * abs(limit)


def _useful(choices: Choices, values: Sequence[np.ndarray]) -> np.ndarray:
    """Leaves out choices of a layer to which another, the same to ties, is nowhere worse."""
    columns = np.stack(values, 1)
    useful = np.ones(len(columns), bool)
    starts = np.flatnonzero(np.r_[True, np.diff(choices.layers) > 0]) if len(columns) else []
    for start, end in zip(starts, [*starts[1:], len(columns)]):
        rows, kinds = columns[start:end], choices.classes[start:end]
        less = (rows[:, None] <= rows).all(-1) & (kinds[:, None] == kinds)  # [i, j]: i beats j
        same = less & less.T
        order = np.arange(end - start)
        beats = less & (~same | (order[:, None] < order))
        useful[start:end] = ~beats.any(0)
    return useful


def _above_least(values: np.ndarray, layers: np.ndarray) -> tuple[np.ndarray, float]:
    """Values less the least of their layer, and the sum of what was subtracted."""
    least = np.full(int(layers.max(initial=-1)) + 1, math.inf)
    np.minimum.at(least, layers, values)
    return values - least[layers], math.fsum(least)
