"""Finds the smallest of several models whose metric holds, in few evaluations."""

from collections.abc import Callable

MOST_LEVELS = 63


def levels_for(evaluations: int) -> int:
    """How many sizes a bisection of so many evaluations can tell apart."""
    return min(2 ** evaluations - 1, MOST_LEVELS)


def smallest_that_holds(levels: int, holds: Callable[[int], bool], left: Callable[[], int],
                        ) -> int | None:
    """Bisects sizes, taking it that what is larger than a model that holds does so, too.

    Where nothing has held and one evaluation is left, that is of the largest.

    Args:
        levels: Number of sizes, from the smallest, 0.
        holds: Whether the metric of one does.
        left: Evaluations that are left; ``holds`` may do without one (a model seen before).

    Returns:
        The smallest that was seen to hold, ``None`` where none was.
    """
    fails, held = -1, levels
    while held - fails > 1 and left() > 0:
        last_chance = held == levels and left() == 1
        level = levels - 1 if last_chance else (fails + held) // 2
        if holds(level):
            held = level
        else:
            fails = level
    return held if held < levels else None
