"""The loop of stages that learn by gradients: steps, looks at held-out batches, the best kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.methods.tuning.problem import TuningProblem

WARM_UP = 0.1  # of the steps
LOOKS = 10  # at held-out batches, where nothing else is said


@dataclass(frozen=True)
class Descent:
    """How a stage goes down.

    Args:
        steps: Of the optimizer.
        rate: Learning rate of a step, by its number.
        optimizer: Makes one for the point.
        batch_size: Batches of a step.
        judge_every: Steps between two looks at the held-out batches; ``None``: a tenth of all.
    """

    steps: int
    rate: Callable[[int], float]
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    batch_size: int
    judge_every: int | None


def descend(problem: TuningProblem, how: Descent) -> dict[str, Any]:
    """Moves the model to the best point on held-out batches that the steps come by.

    Where none is better than the start, the start stays, bit for bit. A gradient that is not finite
    ends it.

    Returns:
        What was done, for the report.
    """
    point = torch.zeros(problem.size, dtype=torch.float64, requires_grad=True)
    optimizer, judge_every = how.optimizer([point]), how.judge_every or max(1, how.steps // LOOKS)
    start = best = problem.loss(problem.held_out)
    fit_start = problem.loss(problem.fit)
    kept, best_step, judged, stopped = point.detach().clone(), 0, [(0, start)], None
    for step in range(how.steps):
        _, gradient = problem.gradient(draw(problem, step, how.batch_size))
        if not bool(gradient.isfinite().all()):
            stopped = step
            break
        optimizer.param_groups[0]['lr'] = how.rate(step)
        point.grad = gradient
        optimizer.step()
        problem.move_to(point.detach())
        problem.progress(step + 1, how.steps)
        if (step + 1) % judge_every == 0 or step + 1 == how.steps:
            judged.append((step + 1, problem.loss(problem.held_out)))
            if judged[-1][1] < best:
                (best_step, best), kept = judged[-1], point.detach().clone()
    problem.move_to(kept)
    return {'steps': how.steps, 'batches_of_a_step': how.batch_size, 'best_step': best_step,
            'kept': 'tuned' if best_step else 'start', 'held_out_before': start,
            'held_out_after': best, 'fit_before': fit_start,
            'fit_after': problem.loss(problem.fit) if best_step else fit_start,
            'judged': [list(pair) for pair in judged],
            **({} if stopped is None else {'not_finite_at_step': stopped})}


def step_size(problem: TuningProblem, batch_size: int | None, images: int) -> int:
    """Batches of a step: as many as asked for, or as hold so many images; at least one."""
    return min(batch_size or max(1, images // problem.images), len(problem.fit))


def draw(problem: TuningProblem, step: int, size: int) -> list[int]:
    """Batches of a step: all in turn, in another order each round."""
    count = len(problem.fit)
    chosen = []
    for place in range(step * size, (step + 1) * size):
        order = torch.randperm(count, generator=problem.generator(place // count))
        chosen.append(problem.fit[int(order[place % count])])
    return sorted(chosen)


def warmed_cosine(step: int, steps: int) -> float:
    """Rises over the first tenth of the steps to a cosine, which falls from 1 to nearly 0.

    Adam's first steps have their full size whatever the gradients are: without the rise they
    take the model far from where the solver has left it.
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / (WARM_UP * steps))
