"""Biases of all layers, learned against the float model's outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from mmbitsplit.methods.tuning.base import Learned, TuningStage, register_stage
from mmbitsplit.methods.tuning.descent import Descent, descend, step_size, warmed_cosine
from mmbitsplit.methods.tuning.problem import TuningProblem
from mmbitsplit.structures import Range

SOURCE_IMAGES = 50  # of a step
RATES = {'sgd': 0.1, 'adam': 1e-3}  # of the source; of ``OutputTuning``


@register_stage
@dataclass(frozen=True)
class BiasTuning(TuningStage):
    """CalibTIP's bias tuning: biases alone, learned against the float model's logits.

    Codes, scales and what a runtime computes stay as they are. No labels are needed. The point that
    is best on held-out batches is kept; where none is better than the start, the start stays, bit
    for bit. Costs about three forwards a batch of a step, and the held-out batches each time they
    are judged.

    Source: Hubara et al., *Improving Post Training Neural Quantization: Layer-wise Calibration and
    Integer Programming*, ICML 2021, and its code: 800 steps on 50 images each, plain
    gradient descent at a rate of 0.1, no momentum, divergence averaged over images and classes,
    the bias of the last layer left alone.

    Differs from source: held-out batches choose the step, where the source takes the last; biases
    stay whole steps of the integer product; a layer without a bias gets one; models that end in
    no class scores are learned on their raw outputs.

    Args:
        steps: Of the optimizer.
        optimizer: ``'sgd'``, plain, or ``'adam'``.
        learning_rate: Of biases in ``unit``; ``None``: 0.1, the source's, with ``'sgd'``, and 0.001
            with ``'adam'``.
        unit: ``'real'``: of the layer's output; ``'spread'``: of the spread of the channel's
            output, which treats wide and narrow layers alike; ``'auto'``: the former with
            ``'sgd'``, the latter with ``'adam'``.
        schedule: ``'constant'``: the source's; ``'cosine'``: rises over the first tenth of the
            steps and falls to zero.
        batch_size: Calibration batches of a step, as they come. ``None``: as many as hold 50
            images, at least one.
        last_layers: Whether biases of the last layers are learned, too.
        loss: As for ``OutputTuning``. For plain descent the divergence is that of the source, a
            mean over classes too, so that its rate means what it does there.
        holdout: As for ``OutputTuning``.
        judge_every: Steps between two looks at the held-out batches; ``None``: a tenth of all.
    """

    steps: Annotated[int, Range(0)] = 800
    optimizer: Literal['sgd', 'adam'] = 'sgd'
    learning_rate: Annotated[float, Range(0, above=True)] | None = None
    unit: Literal['auto', 'real', 'spread'] = 'auto'
    schedule: Literal['constant', 'cosine'] = 'constant'
    batch_size: Annotated[int, Range(1)] | None = None
    last_layers: bool = False
    loss: Literal['auto', 'kl', 'raw'] = 'auto'
    holdout: Annotated[float, Range(0, 0.9, above=True)] = 0.25
    judge_every: Annotated[int, Range(1)] | None = None

    @property
    def learns(self) -> Sequence[Learned]:
        """See ``TuningStage.learns``."""
        return ('biases',)

    @property
    def real_biases(self) -> bool:
        """See ``TuningStage.real_biases``."""
        return self.unit == 'real' or (self.unit == 'auto' and self.optimizer == 'sgd')

    def tune(self, problem: TuningProblem) -> dict[str, Any]:
        """See ``TuningStage.tune``."""
        highest = RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
        if self.optimizer == 'sgd':  # the divergence at hand is summed over classes
            highest /= problem.classes

        def rate(step: int) -> float:
            return highest * (1.0 if self.schedule == 'constant'
                              else warmed_cosine(step, self.steps))

        optimizer = torch.optim.Adam if self.optimizer == 'adam' else torch.optim.SGD
        return descend(problem, Descent(
            self.steps, rate, optimizer, step_size(problem, self.batch_size, SOURCE_IMAGES),
            self.judge_every))
