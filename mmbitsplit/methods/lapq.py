"""LAPQ: scales of all layers together, against the loss of the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from mmbitsplit.functional import (
    correct_weights,
    powell_minimum,
    quadratic_minimum,
    round_weight,
    weight_scale,
)
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.solved_model import SolvedLayer, SolvedModel
from mmbitsplit.structures import QParams, Range, WeightSolution

LOW, HIGH = 0.5, 2.0  # bounds of the factors on scales


@register_method
@dataclass(frozen=True)
class LAPQ(RoundingMethod):
    """Loss aware post-training quantization (Nahshan et al., 2019).

    Layer by layer, scales of least p-norm of the rounding error; a parabola through the model's
    loss over p gives the best p; from there Powell's method moves one factor on the weight scales
    and one on the input scales of every inner layer against the model's loss.

    Differs from source: weights have a scale for each output channel, moved together; the loss
    needs no labels; first and last layers keep the scales of the best p.

    Args:
        norms: The p that are tried.
        loss: Between the float and the quantized model's outputs; ``'auto'``: cross entropy where
            one linear layer makes them, squared error otherwise.
        loss_batches: Calibration batches that the loss is taken over.
        max_iterations: Rounds of Powell's method, each some ten losses a factor (CIFAR ResNet-20,
            36 factors: 380); 0 stops at the best p.
        max_evaluations: Most times that Powell's method asks for the loss.
        weight_correction: Restore mean and norm of each channel's weights after rounding, see
            ``ACIQ``.
    """

    norms: Sequence[Annotated[float, Range(1)]] = (2.0, 2.5, 3.0, 3.5, 4.0)
    loss: Literal['auto', 'cross_entropy', 'squared_error'] = 'auto'
    loss_batches: Annotated[int, Range(1)] = 4
    max_iterations: Annotated[int, Range(0)] = 1
    max_evaluations: Annotated[int, Range(1)] = 2000
    weight_correction: bool = True

    needs = ('model_loss',)

    def __post_init__(self):
        super().__post_init__()
        if not self.norms:
            raise ValueError(f'norms={self.norms!r} is not supported; give at least one p from 1.')

    def packages(self) -> Mapping[str, str]:
        """Powell's method is SciPy's."""
        return {'scipy': 'lapq'} if self.max_iterations else {}

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """One scale a tensor; the norm is the one that layers are first solved with."""
        return {'activation': {'mode': 'per_tensor', 'scale_search': 'lp',
                               'norm': float(self.norms[0])}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``."""
        scale = weight_scale(weight, num_bits, 'lp', norm=self.norms[0])
        return self._at(weight, scale, num_bits)

    def refine(self, model: SolvedModel) -> dict[str, Any]:
        """See ``Method.refine``."""
        layers = list(model.layers.values())
        losses = []
        for norm in self.norms:
            self._install_all(layers, norm)
            losses.append(model.loss())
        norm = quadratic_minimum(self.norms, losses)
        starts = self._install_all(layers, norm)
        loss = model.loss()
        if not loss <= min(losses):  # the parabola missed
            norm = self.norms[losses.index(min(losses))]
            starts, loss = self._install_all(layers, norm), min(losses)
        report = {'norms': list(self.norms), 'losses': losses, 'norm': norm, 'loss_start': loss,
                  'loss': loss, 'evaluations': 0}
        moving = [start for start in starts if start.layer.plan.role == 'inner']
        if not self.max_iterations or not moving:
            return report
        sizes = [1 if start.qparams is None else 2 for start in moving]

        def evaluate(factors: Sequence[float]) -> float:
            rest = list(factors)
            for start, size in zip(moving, sizes):
                self._install(start, *rest[:size])
                del rest[:size]
            return model.loss()

        found = powell_minimum(evaluate, [1.0] * sum(sizes), low=LOW, high=HIGH,
                               max_iterations=self.max_iterations,
                               max_evaluations=self.max_evaluations)
        evaluate(found.point)  # leaves the best point in the layers
        return {**report, 'loss': found.loss, 'evaluations': found.evaluations}

    def _install_all(self, layers: Sequence[SolvedLayer], norm: float) -> list['_Start']:
        """Writes the scales of least p-norm into all layers."""
        starts = []
        for layer in layers:
            spec = replace(layer.plan.activation, scale_search='lp', norm=float(norm))
            if layer.strength is not None:
                spec = replace(spec, strength=layer.strength)
            candidate = layer.candidate(spec)
            weight = candidate.weight(layer.weight, layer.geometry)
            scale = weight_scale(weight, layer.plan.weight.num_bits, 'lp', norm=float(norm))
            starts.append(_Start(layer, candidate.qparams, weight, scale))
            self._install(starts[-1], 1.0)
        return starts

    def _install(self, start: '_Start', weight_factor: float, input_factor: float = 1.0) -> None:
        """Writes a layer with its scales changed by factors, where they are not there already."""
        if start.factors == (weight_factor, input_factor):
            return
        start.factors = (weight_factor, input_factor)
        solved = self._at(start.weight, start.scale * weight_factor,
                          start.layer.plan.weight.num_bits)
        qparams = start.qparams
        if qparams is not None:
            qparams = replace(qparams, scale=qparams.scale * input_factor)
            if qparams.unit:  # the input's scale is in the weights: the same codes, a larger step
                solved = replace(solved, scale=solved.scale * input_factor,
                                 offset=None if solved.offset is None
                                 else solved.offset * input_factor)
        start.layer.install(solved, qparams)

    def _at(self, weight: Tensor, scale: Tensor, num_bits: int) -> WeightSolution:
        codes, offset = round_weight(weight, scale, num_bits), None
        if self.weight_correction:
            scale, offset = correct_weights(weight, codes, scale)
        return rounded_at(weight, codes, scale, offset)


@dataclass
class _Start:
    """Where the joint search begins in a layer.

    Args:
        layer: To write to.
        qparams: Of its input, ``None`` for a float input.
        weight: (G, M, N) float weight on the scale of that.
        scale: (G, M) of its codes.
        factors: On both scales, as written last.
    """

    layer: SolvedLayer
    qparams: QParams | None
    weight: Tensor
    scale: Tensor
    factors: tuple[float, float] | None = None
