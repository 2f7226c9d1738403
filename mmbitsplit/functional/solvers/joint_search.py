"""Searches over numbers that only a loss of the whole model can judge.

Source: Nahshan et al., Loss aware post-training quantization, 2019 (LAPQ), sections 4 and 5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class JointMinimum:
    """What ``powell_minimum`` found.

    Args:
        point: The best point that was tried.
        loss: There; never above that of the start.
        evaluations: How often the loss was asked for.
    """

    point: list[float]
    loss: float
    evaluations: int


def quadratic_minimum(points: Sequence[float], losses: Sequence[float]) -> float:
    """Returns where the parabola of least squares through some losses is lowest.

    Args:
        points: At least three different numbers.
        losses: At each; those that are not finite are left out.

    Returns:
        A number within the range of the points; the best point where the parabola opens
        downwards or fewer than three losses are finite.
    """
    import numpy as np

    known = [(point, loss) for point, loss in zip(points, losses) if math.isfinite(loss)]
    if not known:
        return points[0]
    best = min(known, key=lambda pair: pair[1])[0]
    if len(known) < 3:
        return best
    square, linear, _ = np.polyfit([point for point, _ in known], [loss for _, loss in known], 2)
    if square <= 0:
        return best
    return float(min(max(-linear / (2 * square), min(points)), max(points)))


def powell_minimum(loss: Callable[[Sequence[float]], float], start: Sequence[float], *, low: float,
                   high: float, max_iterations: int, max_evaluations: int,
                   tolerance: float = 0.01) -> JointMinimum:
    """Minimises a loss by Powell's method, without derivatives.

    Args:
        loss: Of a point; what is not finite counts as infinite.
        start: Within the bounds.
        low, high: Bounds of every number.
        max_iterations: Most rounds of line searches along all directions.
        max_evaluations: Most calls of ``loss``, the start's included.
        tolerance: Of a line search, in units of the numbers.

    Returns:
        The best point that was tried: never worse than the start.

    Raises:
        ImportError: SciPy is missing; says how to get it.
    """
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError("Powell's method needs the package 'scipy': pip install "
                          "'mmbitsplit[lapq]'.") from error
    best_point, best_loss, evaluations = list(start), math.inf, 0

    def counted(point: Sequence[float]) -> float:
        nonlocal best_point, best_loss, evaluations
        if evaluations >= max_evaluations:
            raise _EnoughError
        evaluations += 1
        value = loss(point)
        if not math.isfinite(value):
            return math.inf
        if value < best_loss:
            best_point, best_loss = [float(number) for number in point], value
        return value

    try:
        optimize.minimize(counted, list(start), method='Powell', bounds=[(low, high)] * len(start),
                          options={'maxiter': max_iterations, 'xtol': tolerance, 'ftol': 1e-4})
    except _EnoughError:
        pass
    return JointMinimum(best_point, best_loss, evaluations)


class _EnoughError(Exception):
    """As many evaluations as were allowed."""
