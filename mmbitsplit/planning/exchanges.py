"""Plans beside a plan: one layer wider, another narrower, at no more cost than allowed.

An integer program takes the least sum of losses. The loss of the whole plan is another number, and
a plan whose sum is a little larger may do better: these are the ones to try, the least sum first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmbitsplit.structures import Widths, WidthTable

Plan = Mapping[str, Widths]
LEAST_GAIN = 0.01  # of a loss: less is not worth a plan that the table holds for worse
_ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Move:
    """Other widths for a layer, or for layers whose inputs have one width.

    Args:
        widths: What they would have, by layer.
        loss: Change of the sum of losses.
        costs: Change of each limited cost.
    """

    widths: Mapping[str, Widths]
    loss: float
    costs: tuple[float, ...]


def exchanges(plan: Plan, losses: WidthTable, costs: Mapping[str, WidthTable],
              limits: Mapping[str, float], together: Sequence[frozenset[str]] = (),
              ) -> Iterator[dict[str, Widths]]:
    """Yields the plans that one or two moves lead to within all limits, the least sum first.

    Of two moves one saves what the other costs; a single one costs something. Moves that only save
    are left out: the plan that was within the limits stays there, with a larger sum.

    Args:
        plan: Widths of all layers that have losses.
        losses: Of each layer at each of its widths.
        costs: The same of what is limited.
        limits: Most of each cost, summed over all layers.
        together: Sets of layers whose inputs have one width.
    """
    moves = _moves(plan, losses, costs, limits, together)
    if not moves:
        return
    names = list(limits)
    room = np.array([limits[name] - costs[name].sum(plan) for name in names])  # (costs,)
    loss = np.array([move.loss for move in moves])  # (moves,)
    cost = np.array([move.costs for move in moves]).reshape(len(moves), -1)  # (moves, costs)
    slack = _ROUND_OFF * np.array([max(abs(limits[name]), 1.0) for name in names])
    single = (cost <= room + slack).all(1) & (cost > 0).any(1)
    pair = np.array([[one.widths.keys().isdisjoint(other.widths) for other in moves]
                     for one in moves])
    for index in range(len(names)):
        pair &= cost[:, index, None] + cost[None, :, index] <= room[index] + slack[index]
    opposed = np.zeros_like(pair)
    for index in range(len(names)):
        opposed |= np.sign(cost[:, index, None]) * np.sign(cost[None, :, index]) < 0
    pair = np.triu(pair & opposed, 1)
    first, second = pair.nonzero()
    ones = single.nonzero()[0]
    sums = np.concatenate([loss[ones], loss[first] + loss[second]])
    for index in np.argsort(sums, kind='stable'):
        chosen = [ones[index]] if index < len(ones) else [first[index - len(ones)],
                                                          second[index - len(ones)]]
        yield {**plan, **{name: widths for number in chosen
                          for name, widths in moves[number].widths.items()}}


@dataclass(frozen=True)
class Refined:
    """Where exchanges led to.

    Args:
        plan: Widths by layer.
        loss: Of the whole plan.
        tried: Plans whose loss was taken.
        taken: Exchanges that were made.
    """

    plan: dict[str, Widths]
    loss: float
    tried: int
    taken: int


def refine(plan: Plan, loss: float, loss_of: Callable[[Plan], float],
           neighbours: Callable[[Plan], Iterator[dict[str, Widths]]], tries: int) -> Refined:
    """Goes to better neighbours of a plan, the first that is found each time.

    Args:
        plan: Where to begin.
        loss: Of it.
        loss_of: The loss of a whole plan.
        neighbours: Of a plan, the most promising first.
        tries: Most plans whose loss is taken.
    """
    best, tried, taken = dict(plan), 0, 0
    seen = {_key(plan)}
    around = neighbours(best)
    while tried < tries:
        neighbour = next((found for found in around if _key(found) not in seen), None)
        if neighbour is None:
            break
        seen.add(_key(neighbour))
        tried += 1
        found = loss_of(neighbour)
        if found < (1 - LEAST_GAIN) * loss:
            best, loss, taken = neighbour, found, taken + 1
            around = neighbours(best)
    return Refined(best, loss, tried, taken)


def _key(plan: Plan) -> frozenset[tuple[str, Widths]]:
    return frozenset(plan.items())


def _moves(plan: Plan, losses: WidthTable, costs: Mapping[str, WidthTable],
           limits: Mapping[str, float], together: Sequence[frozenset[str]]) -> list[Move]:
    changes: list[dict[str, Widths]] = []
    shared = {name for group in together for name in group}
    for name, row in losses.layers.items():
        changes += [{name: widths} for widths in row if widths != plan[name] and (
            name not in shared or widths.activation == plan[name].activation)]
    for group in together:
        members = sorted(name for name in group & losses.layers.keys()
                         if plan[name].activation is not None)
        inputs = {widths.activation for name in members for widths in losses.layers[name]}
        for bits in sorted(inputs - {plan[name].activation for name in members}):
            change = {name: Widths(plan[name].weight, bits) for name in members}
            if all(widths in losses.layers[name] for name, widths in change.items()):
                changes.append(change)
    tables = [losses, *(costs[limit] for limit in limits)]
    moves = []
    for change in changes:
        loss, *spent = (sum(table.layers[name][widths] - table.layers[name][plan[name]]
                            for name, widths in change.items()) for table in tables)
        moves.append(Move(change, loss, tuple(spent)))
    return moves
