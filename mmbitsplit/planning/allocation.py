"""The integer program that gives each layer its widths: least loss within limits.

One binary variable a layer and choice, x[l, w] (CalibTIP, section 3.3):

    min  sum loss[l, w] x[l, w]
    s.t. sum_w x[l, w] = 1                       for every layer
         sum cost_k[l, w] x[l, w] <= limit_k     for every limit
         inputs that are shared have one width

Losses are taken to add up. They do so only nearly: measure what comes out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mmbitsplit.planning.integer_program import Choices, Chosen, check_solver, minimize
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import Widths, WidthTable

MOST_SECONDS = 60.0
GAP = 1e-4  # far less than what losses are measured to
ROUGH = 1.0  # gap where any plan will do
OPTIMAL, OUT_OF_TIME = 'optimal', 'out of time'


@dataclass(frozen=True)
class Allocation:
    """Widths of all layers, and what the tables say of them.

    Args:
        widths: Of each layer that has losses.
        loss: Their sum.
        costs: What is limited, by name, with layers that have no choice.
        status: ``'optimal'``, or ``'out of time'``: the best that was found by then.
        gap: By which part of the loss the optimum may be less; 0 where it is known.
    """

    widths: dict[str, Widths]
    loss: float
    costs: dict[str, float]
    status: str = OPTIMAL
    gap: float = 0.0


def allocate(losses: WidthTable, costs: Mapping[str, WidthTable], limits: Mapping[str, float],
             together: Iterable[frozenset[str]] = (), *, gap: float = GAP,
             seconds: float = MOST_SECONDS) -> Allocation:
    """Chooses widths of all layers with the least sum of losses within all limits.

    200 layers with 16 choices each take 0.03 to 0.3 s of a core with one limit, 0.2 to 0.9 s with
    two or three; to the last digit (``gap=0``) up to 1.4 s.

    Args:
        losses: Of each layer at each of its choices.
        costs: Tables by name, such as ``planning.costs`` gives. A layer that has no losses counts
            with its only entry.
        limits: Most of the sum of some of these tables, in their units; the others are told only.
        together: Sets of layers whose inputs have one width, such as all that read one tensor.
            Layers whose input is not chosen are left out of them.
        gap: Part of the loss above the least possible by which the result may be worse than the
            optimum; 0 to prove that it is none.
        seconds: After which the best that was found is taken.

    Raises:
        ValueError: The limits cannot be kept; says the least and the greatest possible of each.
            Or a table lacks a layer or a choice, or a limit has no table; names it.
        ImportError: SciPy is missing; says how to get it.

    Source: Hubara et al., CalibTIP (ICML 2021), section 3.3. Differs from source: any number of
        limits of any kind, and widths of weights and inputs may differ.
    """
    return _Program(losses, costs, together).solve(limits, gap, seconds)


def front(losses: WidthTable, costs: Mapping[str, WidthTable],
          budgets: Sequence[Mapping[str, float]], together: Iterable[frozenset[str]] = (), *,
          gap: float = GAP, seconds: float = MOST_SECONDS) -> list[Allocation]:
    """As ``allocate`` for several budgets, each a mapping of limits, in their order."""
    program = _Program(losses, costs, together)
    return [program.solve(limits, gap, seconds) for limits in budgets]


def check_budgets(choices: Mapping[str, Sequence[Widths]], costs: Mapping[str, WidthTable],
                  budgets: Iterable[Mapping[str, float]], together: Iterable[frozenset[str]] = (),
                  *, slack: Mapping[str, float] = MappingProxyType({})) -> None:
    """Refuses budgets that no plan keeps; nothing needs to be measured for it.

    Args:
        choices: Widths of each layer.
        costs, together: As for ``allocate``.
        budgets: Limits, a mapping a budget.
        slack: Part of a limit by which costs may be more, where they are estimated.

    Raises:
        ValueError: See ``allocate``.
    """
    program = _Program(WidthTable({name: dict.fromkeys(row, 0.0) for name, row in choices.items()}),
                       costs, together)
    for limits in budgets:
        program.check(limits, {key: limit * (1 + slack.get(key, 0.0))
                               for key, limit in limits.items()})


def possible(losses: WidthTable, cost: WidthTable, together: Iterable[frozenset[str]] = (),
             ) -> tuple[float, float]:
    """Returns the least and the greatest sum of a cost that any choice of widths has."""
    return _Program(losses, {'cost': cost}, together).extremes('cost')


class _Program:
    """The tables as an integer program: variables are the choices of one layer after another."""

    def __init__(self, losses: WidthTable, costs: Mapping[str, WidthTable],
                 together: Iterable[frozenset[str]]):
        check_solver()
        _check_tables(losses, costs)
        self.losses, self.costs = losses, costs
        self.variables = [(name, widths) for name, row in losses.layers.items() for widths in row]
        self.loss = np.array([losses.layers[name][widths] for name, widths in self.variables])
        self.cost = {key: np.array([table.layers[name][widths] for name, widths in self.variables])
                     for key, table in costs.items()}
        # What layers without a choice cost.
        self.fixed = {key: math.fsum(next(iter(row.values())) for name, row in table.layers.items()
                                     if name not in losses.layers)
                      for key, table in costs.items()}
        self.choices = _choices(losses, [group & losses.layers.keys() for group in together])

    def check(self, limits: Mapping[str, float], loose: Mapping[str, float]) -> None:
        """Refuses limits if not even the looser ones can be kept."""
        self._check_names(limits)
        cost = self.cost[next(iter(limits))] if limits else self.loss
        found = self._minimize(cost, loose, ROUGH, MOST_SECONDS)
        if found.mask is None and found.finished:
            raise ValueError(self._why_not(limits))

    def solve(self, limits: Mapping[str, float], gap: float, seconds: float) -> Allocation:
        self._check_names(limits)
        found = self._minimize(self.loss, limits, gap, seconds)
        if found.mask is None:
            raise ValueError(self._why_not(limits) if found.finished else (
                f'The integer program found no plan in {seconds:g} s. Give it more seconds, '
                'or fewer widths.'))
        plan = self._plan(found)
        loss = self.losses.sum(plan)
        open_part = max(0.0, loss - found.bound) / max(abs(loss), 1e-300)
        return Allocation(plan, loss, {key: table.sum(plan) for key, table in self.costs.items()},
                          OPTIMAL if found.finished else OUT_OF_TIME,
                          open_part if open_part > 1e-9 else 0.0)

    def extremes(self, key: str, limits: Mapping[str, float] | None = None) -> tuple[float, float]:
        """Least and greatest sum of a cost, within limits of others; NaN where there is none."""
        found = [self._minimize(sign * self.cost[key], limits or {}, 0.0, MOST_SECONDS)
                 for sign in (1, -1)]
        least, greatest = (math.nan if one.mask is None else self.costs[key].sum(self._plan(one))
                           for one in found)
        return least, greatest

    def _check_names(self, limits: Mapping[str, float]) -> None:
        for key in limits:
            if key not in self.costs:
                raise ValueError(f"limits: '{key}' has no table of costs; "
                                 f'{nearest(key, self.costs)}.')

    def _minimize(self, objective: np.ndarray, limits: Mapping[str, float], gap: float,
                  seconds: float) -> Chosen:
        return minimize(self.choices, objective, [self.cost[key] for key in limits],
                        [limit - self.fixed[key] for key, limit in limits.items()],
                        gap=gap, seconds=seconds)

    def _plan(self, found: Chosen) -> dict[str, Widths]:
        assert found.mask is not None
        return dict(self.variables[number] for number in np.flatnonzero(found.mask))

    def _why_not(self, limits: Mapping[str, float]) -> str:
        asked = ' and '.join(f'{key} <= {limit:g}' for key, limit in limits.items())
        parts, alone = [], False
        for key, limit in limits.items():
            least, greatest = self.extremes(key)
            if math.isnan(least):
                return ('No choice of widths gives the layers that share an input one width: '
                        'give them common widths.')
            alone |= limit < least
            parts.append(f'{key} from {_shown(least)} to {_shown(greatest)}')
        text = f'The budget {asked} cannot be kept. Possible with these widths: {", ".join(parts)}'
        if not alone and len(limits) > 1:
            tight = []
            for key in limits:
                others = {other: limit for other, limit in limits.items() if other != key}
                least, _ = self.extremes(key, others)
                if not math.isnan(least):
                    tight.append(f'{key} {_shown(least)}')
            text += '; each alone, but not all together' + (
                f' (within the others the least is {", ".join(tight)})' if tight else '')
        return text + '. Allow more, add narrower widths, or free layers whose widths are fixed.'


def _choices(losses: WidthTable, together: Sequence[frozenset[str]]) -> Choices:
    """Variables, and the equations that give the inputs of some layers one width."""
    from scipy.sparse import coo_array

    layers = np.repeat(np.arange(len(losses.layers)), [len(row) for row in losses.layers.values()])
    places: dict[str, dict[int, list[int]]] = {}
    activations = [(name, widths.activation) for name, row in losses.layers.items()
                   for widths in row]
    for number, (name, bits) in enumerate(activations):
        if bits is not None:
            places.setdefault(name, {}).setdefault(bits, []).append(number)
    entries: list[tuple[int, int, float]] = []
    rows = 0
    tied: set[str] = set()
    for group in together:
        members = [name for name in sorted(group) if name in places]
        tied |= set(members)
        for first, second in zip(members, members[1:]):
            for bits in sorted(places[first].keys() | places[second].keys()):
                entries += [(rows, number, 1.0) for number in places[first].get(bits, ())]
                entries += [(rows, number, -1.0) for number in places[second].get(bits, ())]
                rows += 1
    found = np.array(entries).reshape(-1, 3)
    ties = coo_array((found[:, 2], (found[:, 0].astype(int), found[:, 1].astype(int))),
                     (rows, len(layers)))
    classes = np.array([bits or 0 if name in tied else 0 for name, bits in activations], int)
    return Choices(layers, ties, classes)


def _shown(value: float) -> str:
    """A limit with as many digits as it takes to be asked for."""
    return f'{value:.0f}' if abs(value) >= 1e4 else f'{value:.4g}'


def _check_tables(losses: WidthTable, costs: Mapping[str, WidthTable]) -> None:
    for name, row in losses.layers.items():
        if not row:
            raise ValueError(f"losses: layer '{name}' has no widths to choose from.")
        for widths, loss in row.items():
            if not math.isfinite(loss):
                raise ValueError(f"losses: layer '{name}' has {loss} at {widths}; leave the choice "
                                 'out, or measure it again.')
    for key, table in costs.items():
        for name, row in losses.layers.items():
            if name not in table.layers:
                raise ValueError(f"costs '{key}' lack layer '{name}'; "
                                 f'{nearest(name, list(table.layers)[:12])}, ...')
            for widths in row:
                if not math.isfinite(table.layers[name].get(widths, math.nan)):
                    raise ValueError(f"costs '{key}' have no number for layer '{name}' at "
                                     f'{widths}.')
        for name, row in table.layers.items():
            if name not in losses.layers and len(row) != 1:
                raise ValueError(f"costs '{key}': layer '{name}' has no losses, and so must have "
                                 f'one entry; it has {len(row)}.')
