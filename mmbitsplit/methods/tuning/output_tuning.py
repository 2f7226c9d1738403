"""Codes, scales and biases of all layers, learned together against the float model's outputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch

from mmbitsplit.methods.tuning.base import STEP_IMAGES, Learned, TuningStage, register_stage
from mmbitsplit.methods.tuning.descent import Descent, descend, step_size, warmed_cosine
from mmbitsplit.methods.tuning.problem import TuningProblem
from mmbitsplit.structures import Range

ROUNDS, ROUNDS_OF_SCORES, MOST_STEPS = 8, 12, 240  # see ``OutputTuning.rounds``
BETAS = (0.9, 0.999)


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
        rounds: How often each batch that is learned from comes. ``None``: 12 times where the loss
            is ``'kl'``, else 8, in at most 240 steps.
        learning_rate: Of logarithms of scales, of biases in units of the spread of the channel's
            output, and of codes in half code steps.
        batch_size: Calibration batches of a step, as they come. ``None``: as many as hold 4
            images, at least one.
        images: Batches that hold more images than this are cut into parts of about so many, for
            more and smaller steps; those that are judged on, too. For batches that are a tensor,
            or a dict of tensors and lists of one length; others, and with ``None`` all, come as
            they are.
        mirrored: Each batch comes as it is or seen in a mirror (left and right changed), by
            chance. Images that are never seen in a mirror, such as those of text, will do: the
            float model says what is right. ``'auto'``: where batches hold images, unless the model
            ends in class scores (CIFAR ResNet-20 lost half a point of top-1 by it).
        scales: Weight scales, and offsets with them, are learned.
        biases: Biases are learned; a layer without one gets one.
        input_scales: Scales of layer inputs, and of outputs where these are quantized, are
            learned; but for those that a quantized residual stream shares with others.
        codes: Codes are learned, straight through rounding, from where the float weight is near
            the solver's code; those of layers with several widths stay.
        zero_points: Zero points of inputs, and of outputs where these are quantized, are learned
            where a range has both signs, in parts of the range; but for those of a shared stream.
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
            error. So is, with several processes, what one of them alone runs into.
    """

    steps: Annotated[int, Range(0)] | None = None
    rounds: Annotated[float, Range(0, above=True)] | None = None
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    batch_size: Annotated[int, Range(1)] | None = None
    images: Annotated[int, Range(1)] | None = None
    mirrored: bool | Literal['auto'] = False
    scales: bool = True
    biases: bool = True
    input_scales: bool = True
    codes: bool = False
    zero_points: bool = False
    optimizer: Literal['adam', 'sgd'] = 'adam'
    loss: Literal['auto', 'kl', 'raw', 'confidence'] = 'auto'
    inner: Annotated[float, Range(0)] | None = None
    holdout: Annotated[float, Range(0, 0.9, above=True)] = 0.25
    judge_every: Annotated[int, Range(1)] | None = None
    if_possible: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learns:
            raise ValueError('scales, biases, input_scales, codes and zero_points are all '
                             'False: nothing is left to learn. Set one of them, or leave the '
                             'stage out.')

    @property
    def learns(self) -> Sequence[Learned]:
        """See ``TuningStage.learns``."""
        wanted: dict[Learned, bool] = {'scales': self.scales, 'biases': self.biases,
                                       'input_scales': self.input_scales, 'codes': self.codes,
                                       'zero_points': self.zero_points}
        return tuple(name for name, on in wanted.items() if on)

    def tune(self, problem: TuningProblem) -> dict[str, Any]:
        """See ``TuningStage.tune``."""
        optimizer = partial(torch.optim.Adam, betas=BETAS) if self.optimizer == 'adam' \
            else partial(torch.optim.SGD, momentum=0.9)
        size, steps = self._schedule(problem)
        return descend(problem, Descent(
            steps, lambda step: self.learning_rate * warmed_cosine(step, steps), optimizer, size,
            self.judge_every))

    def _schedule(self, problem: TuningProblem) -> tuple[int, int]:
        """Batches of a step, and steps."""
        size = step_size(problem, self.batch_size, STEP_IMAGES)
        if self.steps is not None:
            return size, self.steps
        batches = len(problem.fit) / (2 if problem.mirrored else 1)  # either of two comes
        if self.rounds is not None:
            return size, max(1, math.ceil(self.rounds * batches / size))
        rounds = ROUNDS_OF_SCORES if problem.classes > 1 else ROUNDS
        return size, min(MOST_STEPS, max(1, math.ceil(rounds * batches / size)))
