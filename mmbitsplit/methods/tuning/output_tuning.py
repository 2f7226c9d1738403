"""Codes, scales and biases of all layers, learned together against the float model's outputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from mmbitsplit.methods.tuning.base import STEP_IMAGES, Learned, TuningStage, register_stage
from mmbitsplit.methods.tuning.problem import TuningProblem
from mmbitsplit.structures import Range

WARM_UP = 0.1  # of the steps
BETAS = (0.9, 0.999)
LOOKS = 10  # at held-out batches


@register_stage
@dataclass(frozen=True)
class OutputTuning(TuningStage):
    """Learns all layers at once against what the float model's last layers give.

    No labels are needed. What depends on data in jumps (proposals) is replayed as the float model
    had it. Batches that no layer was solved on (``calibration.holdout``) are held out here, too:
    the point that is best on these is kept, and where none is better than the start, the start
    stays, bit for bit.

    Costs about three forwards a batch of a step, and the held-out batches each time they are
    judged. An interrupted stage starts again from the solved layers.

    Args:
        steps: Of the optimizer; its learning rate rises over the first tenth and falls to
            zero, as a cosine. ``None``: as many as ``rounds`` asks for.
        rounds: How often each batch that is learned from comes.
        learning_rate: Of logarithms of scales, of biases in units of the spread of the channel's
            output, and of codes in half code steps.
        batch_size: Calibration batches of a step, as they come. ``None``: as many as hold 4
            images, at least one.
        mirrored: Each batch comes as it is or seen in a mirror (left and right changed), by
            chance. Images that are never seen in a mirror, such as those of text, will do: the
            float model says what is right. ``'auto'``: where batches hold images.
        scales: Weight scales, and offsets with them, are learned.
        biases: Biases are learned; a layer without one gets one.
        input_scales: Scales of layer inputs, and of outputs where these are quantized, are
            learned; but for those that a quantized residual stream shares with others.
        codes: Codes are learned, straight through rounding, from where the float weight is near
            the solver's code; those of layers with several widths stay.
        optimizer: ``'adam'``, or ``'sgd'`` with momentum 0.9.
        loss: ``'kl'``: divergence of the class probabilities from the float model's, for a model
            that ends in one layer of class scores; ``'raw'``: squared change of each raw output,
            relative to its variance; ``'confidence'``: that, weighted by how sure a dense head
            is of each place; ``'auto'``: the first where it is possible, the last where there is
            such a head, else the second.
        inner: Weight of the squared change of what inner layers read, relative to its variance,
            beside the loss of the outputs; 0 looks at outputs alone. Costs a float forward more.
            ``None``: 10 where the loss is ``'kl'``, as class scores say little of an image, else 0.
        holdout: Part of the calibration batches that are judged on and not learned from, where
            there are too few for whole ones that no layer was solved on. Layers do better on
            what they were solved on than elsewhere, so judging there favours the start.
        judge_every: Steps between two looks at these; ``None``: a tenth of all.
        if_possible: A model that cannot be tuned (one batch alone, outputs without gradients,
            too little memory) is left as it was solved, and the report says why; else that is an
            error.
    """

    steps: Annotated[int, Range(0)] | None = None
    rounds: Annotated[float, Range(0, above=True)] = 8.0
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    batch_size: Annotated[int, Range(1)] | None = None
    mirrored: bool | Literal['auto'] = False
    scales: bool = True
    biases: bool = True
    input_scales: bool = True
    codes: bool = False
    optimizer: Literal['adam', 'sgd'] = 'adam'
    loss: Literal['auto', 'kl', 'raw', 'confidence'] = 'auto'
    inner: Annotated[float, Range(0)] | None = None
    holdout: Annotated[float, Range(0, 0.9, above=True)] = 0.25
    judge_every: Annotated[int, Range(1)] | None = None
    if_possible: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learns:
            raise ValueError('scales, biases, input_scales and codes are all False: nothing is '
                             'left to learn. Set one of them, or leave the stage out.')

    @property
    def learns(self) -> Sequence[Learned]:
        """See ``TuningStage.learns``."""
        wanted: dict[Learned, bool] = {'scales': self.scales, 'biases': self.biases,
                                       'input_scales': self.input_scales, 'codes': self.codes}
        return tuple(name for name, on in wanted.items() if on)

    def tune(self, problem: TuningProblem) -> dict[str, Any]:
        """See ``TuningStage.tune``."""
        point = torch.zeros(problem.size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([point], betas=BETAS) if self.optimizer == 'adam' else \
            torch.optim.SGD([point], momentum=0.9)
        size, steps = self._schedule(problem)
        judge_every = self.judge_every or max(1, steps // LOOKS)
        start = best = problem.loss(problem.held_out)
        fit_start = problem.loss(problem.fit)
        kept, best_step, judged, stopped = point.detach().clone(), 0, [(0, start)], None
        for step in range(steps):
            _, gradient = problem.gradient(draw(problem, step, size))
            if not bool(gradient.isfinite().all()):
                stopped = step
                break
            optimizer.param_groups[0]['lr'] = self.learning_rate * rate(step, steps)
            point.grad = gradient
            optimizer.step()
            problem.move_to(point.detach())
            problem.progress(step + 1, steps)
            if (step + 1) % judge_every == 0 or step + 1 == steps:
                judged.append((step + 1, problem.loss(problem.held_out)))
                if judged[-1][1] < best:
                    (best_step, best), kept = judged[-1], point.detach().clone()
        problem.move_to(kept)
        return {'steps': steps, 'batches_of_a_step': size, 'best_step': best_step,
                'kept': 'tuned' if best_step else 'start', 'held_out_before': start,
                'held_out_after': best, 'fit_before': fit_start,
                'fit_after': problem.loss(problem.fit) if best_step else fit_start,
                'judged': [list(pair) for pair in judged],
                **({} if stopped is None else {'not_finite_at_step': stopped})}

    def _schedule(self, problem: TuningProblem) -> tuple[int, int]:
        """Batches of a step, and steps."""
        size = self.batch_size or max(1, STEP_IMAGES // problem.images)
        size = min(size, len(problem.fit))
        if self.steps is not None:
            return size, self.steps
        batches = len(problem.fit) / (2 if problem.mirrored else 1)  # either of two comes
        return size, max(1, math.ceil(self.rounds * batches / size))


def draw(problem: TuningProblem, step: int, size: int) -> list[int]:
    """Batches of a step: all in turn, in another order each round."""
    count = len(problem.fit)
    chosen = []
    for place in range(step * size, (step + 1) * size):
        order = torch.randperm(count, generator=problem.generator(place // count))
        chosen.append(problem.fit[int(order[place % count])])
    return sorted(chosen)


def rate(step: int, steps: int) -> float:
    """Rises over the first tenth of the steps to a cosine, which falls from 1 to nearly 0.

    Adam's first steps have their full size whatever the gradients are: without the rise they
    take the model far from where the solver has left it.
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / (WARM_UP * steps))
