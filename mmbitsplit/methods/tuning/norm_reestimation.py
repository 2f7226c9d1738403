"""Norms rebuilt behind layers, their statistics taken from the quantized model, folded back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from mmbitsplit.functional.norm_statistics import mean_and_variance, renormalization
from mmbitsplit.methods.tuning.base import Learned, TuningStage, WorksOn, register_stage
from mmbitsplit.methods.tuning.problem import NormProblem
from mmbitsplit.structures import FoldedNorm, Range

LEAST_POSITIONS = 32  # of a layer, for statistics


@register_stage
@dataclass(frozen=True)
class NormReestimation(TuningStage):
    """CalibTIP's para-normalization: each folded batch norm is rebuilt and its statistics renewed.

    Rounding changes mean and spread of what a layer gives. Behind each layer that took a batch norm
    in, a norm is put that is the identity where outputs have the folded norm's mean ``beta`` and
    deviation ``gamma``; its mean and variance are taken from the quantized model on the calibration
    images, and it is folded into the scale, offset and bias of the layer. Codes stay. Layers come
    in order, each after those before it have been changed. No gradients; costs a forward a batch,
    two of each layer that is changed, and the losses.

    Kept where the loss on held-out batches falls, else all stays as it was, bit for bit.

    Source: Hubara et al., *Improving Post Training Neural Quantization: Layer-wise Calibration and
    Integer Programming*, ICML 2021.

    Differs from source: statistics are those of all images at once, where the source's code
    normalizes each batch by itself and moves running statistics by 0.1 a batch, five times
    (``momentum=0.1``, with ``calibration.batch_size=200``, is that); scales grow at most eightfold;
    held-out batches decide (``guard=False``: it is always kept); biases stay whole steps of the
    integer product.

    Args:
        batches: ``'all'``: statistics of all calibration batches; ``'fit'``: of those that are not
            judged on.
        target: ``'norm'``: what outputs are to have is said by the folded norm; layers without one
            are left alone. ``'float'``: what they have in the float model on the same images, in
            all layers, whether a norm was folded or not.
        momentum: How far running statistics move with each batch, from those of the float model
            on; ``None`` for the statistics of all.
        guard: Whether held-out batches decide.
        loss: As for ``OutputTuning``; to judge by.
        holdout: As for ``OutputTuning``.
    """

    batches: Literal['all', 'fit'] = 'all'
    target: Literal['norm', 'float'] = 'norm'
    momentum: Annotated[float, Range(0, 1, above=True)] | None = None
    guard: bool = True
    loss: Literal['auto', 'kl', 'raw'] = 'auto'
    holdout: Annotated[float, Range(0, 0.9, above=True)] = 0.25

    @property
    def learns(self) -> Sequence[Learned]:
        """See ``TuningStage.learns``."""
        return ()

    @property
    def works_on(self) -> WorksOn:
        """See ``TuningStage.works_on``."""
        return 'norms'

    def tune(self, problem: NormProblem) -> dict[str, Any]:
        """See ``TuningStage.tune``."""
        held_out, fit = problem.loss(problem.held_out), problem.loss(problem.fit)
        batches = sorted([*problem.fit, *(problem.held_out if self.batches == 'all' else ())])
        growth = self._in_order(problem, batches) if self.momentum is None \
            else self._running(problem, batches, self.momentum)
        after = problem.loss(problem.held_out)
        kept = bool(growth) and (after < held_out or not self.guard and after < float('inf'))
        outcome = {
            'steps': len(problem.norms), 'kept': 'tuned' if kept else 'start',
            'best_step': len(growth) if kept else 0, 'layers': len(growth),
            'held_out_before': held_out, 'held_out_tried': after,
            'held_out_after': after if kept else held_out, 'fit_before': fit,
            'fit_after': problem.loss(problem.fit) if kept else fit,
            'growth': [min(growth.values(), default=1.0), max(growth.values(), default=1.0)]}
        if not kept:
            problem.take_back()
        return outcome

    def _in_order(self, problem: NormProblem, batches: Sequence[int]) -> dict[str, float]:
        """Settles layers one after another; returns the mean factor of each."""
        growth: dict[str, float] = {}

        def settle(name: str, moments: Tensor) -> None:
            if float(moments[0].min()) < LEAST_POSITIONS:
                return
            factor, shift = renormalization(*mean_and_variance(moments), problem.norms[name])
            problem.scale_and_shift(name, factor, shift)
            growth[name] = float(factor.mean())
            problem.progress(len(growth), len(problem.norms))

        problem.in_order(batches, settle)
        return growth

    def _running(self, problem: NormProblem, batches: Sequence[int], momentum: float,
                 ) -> dict[str, float]:
        """The same by running statistics."""
        growth = {}
        for name, calls in problem.by_batch(batches).items():
            norm = problem.norms[name]
            calls = [moments for moments in calls if float(moments[0].min()) > 1]
            if not calls:
                continue
            factor, shift = renormalization(*running_statistics(calls, norm, momentum), norm)
            problem.scale_and_shift(name, factor, shift)
            growth[name] = float(factor.mean())
        return growth


def running_statistics(calls: Sequence[Tensor], norm: FoldedNorm, momentum: float,
                       ) -> tuple[Tensor, Tensor]:
    """Mean and variance (out_channels,) as a batch norm's buffers have them after some calls.

    Args:
        calls: Sums (3, out_channels) of each.
        norm: Where they begin.
        momentum: How far each call moves them.
    """
    mean, variance = norm.beta, norm.gamma.square()
    for moments in calls:
        found, spread = mean_and_variance(moments)
        unbiased = spread * moments[0] / (moments[0] - 1)
        mean = mean + momentum * (found - mean)
        variance = variance + momentum * (unbiased - variance)
    return mean, variance
