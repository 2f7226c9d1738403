"""PTMQ: one rounding for all widths of a block, learned on features of several widths at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.functional.quantizers.feature_mixer import FeatureMixer, MixerCase
from mmbitsplit.functional.quantizers.random_drop import RandomDrop
from mmbitsplit.functional.solvers.group_distillation import group_distillation_loss
from mmbitsplit.methods.base import Granularity, register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_learning import (
    NOTHING,
    Distance,
    Learning,
    LossForm,
    Objective,
    Push,
    learn,
)
from mmbitsplit.methods.unit_learning_activations import dropped_quantization
from mmbitsplit.methods.unit_learning_draws import Draw
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_widths import (
    LearnedWidths,
    WidthStart,
    default_groups,
    places,
    reopen,
)
from mmbitsplit.methods.unit_problem import UnitCandidate, UnitProblem
from mmbitsplit.structures import QuantSpec, Range, WeightSolution, Widths

NORM = 2.4  # of the scale searches, as in QDrop
REOPENED = 0.05  # how far roundings are from 0 and 1 where the next width goes on with them

Bits = Annotated[int, Range(2, 8)]
Strategy = Literal['mixed', 'separate', 'direct', 'low_to_high', 'high_to_low']


@register_method
@dataclass(frozen=True)
class PTMQ(RoundingMethod):
    """PTMQ (Xu et al., AAAI 2024): one run gives a model that switches between widths.

    Each weight has one rounding R, up or down, for all widths:
    ``w_b = s_b * clip(floor(w / s_b) + R)`` with scales ``s_b`` of each width that are searched
    and stay. From there Adam learns for each block R and the input scales of each width, as QDrop
    does for one. In each step one width of each of three groups is drawn. The block's input is a
    mix of what the quantized model gives it at these widths and of the float input
    (``FeatureMixer``), its output at each of them is computed, and the loss is the error of their
    mix against the float block and of the low and the middle one against the high one
    (``group_distillation_loss``). Layers that are no block's are learned alike, each by itself.

    What the quantized model gives a unit at each width is computed again from the images
    (``passes.width_inputs``): a run of the layers before it for each unit, width and image, beside
    ``iterations`` steps of three runs of the unit on ``batch_size`` images, forward and backward.
    So a run costs about three times that of QDrop at one width, whatever the number of widths, and
    the unit's inputs are held once a width.

    The codes of widths are not made of each other: a file holds them all, 21 bits a weight for
    widths 3, 4, 6 and 8.

    Differs from source: what ``QDrop`` says of placement, zero points and held-out images, but
    codes have the full range. As what enters layers is quantized, features are mixed as they leave
    the units before, and each of the three runs quantizes the mix at its own input width; in the
    paper features have been quantized before they are mixed. Squared errors are summed over
    channels, as QDrop's are, so that ``regularization`` means the same. Residual streams have a
    scale for each width, found on the float model, which is not learned; outputs of layers have
    one width each. The supplement is not public, so groups, lambdas, gammas, steps,
    where R begins, and whether the high group is detached, are options.
    Which layers have 8 bits is ``first_last``, not the method's; such layers have one width.

    Args:
        widths: Of the weights. The request's ``weight.num_bits`` is not used for layers that have
            them.
        activation_widths: Of the inputs: ``'tied'``, those of the weights, unless the request says
            ``activation.num_bits``; or a list. A width of the weights is learned with the nearest
            of them that is no narrower. Any two go together afterwards.
        groups: Three lists of widths, low, middle and high. When not given: up to 4, 5 and 6, 7
            and 8; thirds where one of these is empty.
        mixer: Of ``'case1'``, ``'case2'`` and ``'case3'``, see ``FeatureMixer``.
        lambdas: Weights of the three groups in a mix.
        gammas: Weights of the three parts of the loss. ``[1, 0, 0]`` leaves distillation out.
        detach_high: Whether the high group is left alone by distillation.
        iterations: Steps for each block.
        batch_size: Images of a step, or crops of them; rows of a matrix.
        drop_probability: That an element of a mix is replaced.
        drop_inside: Whether elements inside of the block are left unquantized at random as well,
            with the same probability, as in QDrop.
        learning_rate: Of the roundings.
        scale_rate: Of the input scales, in real units; falls to 0 along a cosine.
        regularization: Weight of the push to 0 or 1, see ``QDrop``.
        warm_start: Part of the iterations that have no push.
        start: Where roundings begin: ``'lowest'``, with the lowest width as it is in float;
            ``'mean'``, with all widths so on average.
        strategy: ``'mixed'`` is PTMQ. ``'separate'`` is ours: the drawn widths do not meet; each
            learns as in QDrop, from what the model gives at it and the float input, against the
            float block, so that a low width makes good what came before it; ``mixer``,
            ``lambdas`` and ``gammas`` say nothing then. The others are what the paper compares
            with, all with QDrop's mix of one width and float: ``'direct'`` learns R at
            ``direct_bits`` alone, ``'low_to_high'`` and ``'high_to_low'`` at one width after
            another, ``iterations`` at each, going on with R as it is, but at least 0.05 from 0
            and 1.
        direct_bits: Of ``strategy='direct'``; the lowest when not given.
        fallback: Whether each width of a block is rounded by itself where what was learned is no
            better on held-out images, on average over the widths. ``False`` takes it anyhow, to
            compare strategies.
        granularity: What is learned together: ``'layer'``, ``'block'``, ``'stage'``, ``'net'``;
            see ``Method``.
        merge: How many neighbouring blocks are learned together.
        loss: ``'published'``, or ``'scale_free'``: relative to the variance of the block's
            outputs, with a regularization of 500 or so.
    """

    widths: Sequence[Bits] = (3, 4, 6, 8)
    activation_widths: Literal['tied'] | Sequence[Bits] = 'tied'
    groups: Sequence[Sequence[Bits]] | None = None
    mixer: MixerCase = 'case3'
    lambdas: Sequence[Annotated[float, Range(0)]] = (1 / 3, 1 / 3, 1 / 3)
    gammas: Sequence[Annotated[float, Range(0)]] = (1.0, 1.0, 1.0)
    detach_high: bool = True
    iterations: Annotated[int, Range(0)] = 20000
    batch_size: Annotated[int, Range(1)] = 32
    drop_probability: Annotated[float, Range(0, 1)] = 0.5
    drop_inside: bool = True
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    scale_rate: Annotated[float, Range(0, above=True)] = 4e-5
    regularization: Annotated[float, Range(0)] = 0.01
    warm_start: Annotated[float, Range(0, 1)] = 0.2
    start: WidthStart = 'lowest'
    strategy: Strategy = 'mixed'
    direct_bits: Bits | None = None
    fallback: bool = True
    granularity: Granularity = 'block'
    merge: Annotated[int, Range(1)] = 1
    loss: LossForm = 'published'

    needs = ('sums', 'unit_io')
    solves = 'unit'

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = tuple(sorted(set(self.widths)))
        if len(ordered) < 2 or len(ordered) < len(self.widths):
            raise ValueError(f'widths={self.widths!r} is not supported; it must be at least two '
                             'different widths. For a single one use QDrop.')
        object.__setattr__(self, 'widths', ordered)
        if self.activation_widths != 'tied':
            inputs = tuple(sorted(set(self.activation_widths)))
            if not inputs:
                raise ValueError("activation_widths=[] is not supported; it must be 'tied' or at "
                                 'least one width.')
            object.__setattr__(self, 'activation_widths', inputs)
        for name in ('lambdas', 'gammas'):
            values = getattr(self, name)
            if len(values) != 3 or not sum(values):
                raise ValueError(f'{name}={values!r} is not supported; it must be three numbers, '
                                 'not all 0, of the low, middle and high group.')
            object.__setattr__(self, name, tuple(map(float, values)))
        if self.mixer == 'case2' and not sum(self.lambdas[1:]):
            raise ValueError(f"lambdas={self.lambdas!r} with mixer='case2' leaves nothing of the "
                             'middle and the high group; make one of them larger than 0.')
        groups = self._groups()
        if len(groups) != 3 or not all(groups) or {*ordered} != {
                bits for group in groups for bits in group}:
            raise ValueError(f'groups={groups!r} is not supported; it must be three lists, none '
                             f'empty, that hold the widths {", ".join(map(str, ordered))}.')
        if self.direct_bits is not None and (self.strategy != 'direct'
                                             or self.direct_bits not in ordered):
            raise ValueError(f"direct_bits={self.direct_bits!r} is of strategy='direct', and one "
                             f'of the widths {", ".join(map(str, ordered))}.')

    def _groups(self) -> Sequence[Sequence[int]]:
        """The low, middle and high group."""
        return default_groups(self.widths) if self.groups is None else self.groups

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """One scale a tensor of least 2.4-norm, two-sided inputs with a zero point."""
        return {'activation': {'mode': 'per_tensor', 'symmetry': 'asymmetric',
                               'scale_search': 'lp', 'norm': NORM}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``: where learning starts, each width rounded by itself."""
        found = {bits: self._rounded(weight, bits) for bits in {num_bits, *self._fewer(num_bits)}}
        return replace(found.pop(num_bits), narrower=found)

    def _fewer(self, num_bits: int) -> Sequence[int]:
        """Widths beside the widest; a layer of another width has that alone."""
        return self.widths[:-1] if num_bits == self.widths[-1] else ()

    def _rounded(self, weight: Tensor, num_bits: int) -> WeightSolution:
        scale = weight_scale(weight, num_bits, 'lp', norm=NORM)
        return rounded_at(weight, round_weight(weight, scale, num_bits), scale)

    def width_pairs(self, spec: QuantSpec) -> Sequence[Widths]:
        """See ``Method.width_pairs``."""
        inputs = self.input_widths(spec)
        return [Widths(bits, min((one for one in inputs if one >= bits), default=max(inputs))
                       if inputs else None) for bits in self.widths]

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """See ``Method.solve_unit``."""
        widths = LearnedWidths(problem)
        problem = replace(problem, use=widths.use)
        rounding, scales = widths.soften(self.start), widths.learn_scales()
        learned, stages = NOTHING, self._stages(widths, problem)
        for number, (name, objective) in enumerate(stages):
            if number:
                reopen(rounding, REOPENED)
            learned = learn(problem, Learning(
                groups=[ParameterGroup(parameters=rounding, learning_rate=self.learning_rate),
                        ParameterGroup(parameters=scales, learning_rate=self.scale_rate,
                                       schedule='cosine')],
                steps=self.iterations, batch_size=self.batch_size, loss=self.loss, stage=name,
                push=Push(weight=self.regularization, warm_start=self.warm_start),
                objective=objective, steps_before=number * self.iterations,
                steps_after=(len(stages) - 1 - number) * self.iterations), learned)
        widths.harden()
        yield UnitCandidate('learned rounding', widths.solutions(), learned.notes,
                            learned.figures, always=not self.fallback)

    def _stages(self, widths: LearnedWidths, problem: UnitProblem) -> list[tuple[str, Objective]]:
        """What is learned one after another: its name, and what is minimised."""
        if self.strategy == 'mixed':
            return [('weights', partial(self._of_groups, widths, problem))]
        if self.strategy == 'separate':
            return [('weights', partial(self._of_each, widths, problem))]
        order = [self.direct_bits or self.widths[0]] if self.strategy == 'direct' else \
            self.widths if self.strategy == 'low_to_high' else self.widths[::-1]
        return [(f'weights of {bits} bits', partial(
            self._of_one, self.widths.index(bits), widths, problem)) for bits in order]

    def _of_groups(self, widths: LearnedWidths, problem: UnitProblem, draw: Draw,
                   generator: torch.Generator, distance: Distance) -> Tensor:
        """PTMQ's loss of a step (Eq. 5 and 6)."""
        assert draw.float_input is not None
        mix = FeatureMixer(self.mixer, self.lambdas, self.drop_probability)
        drawn = self._drawn(problem, generator)
        x = mix([draw.width_inputs[index] for index in drawn], lambda: draw.float_input, generator)
        # As others read them, which is how they will be mixed for the next unit.
        outputs = [problem.as_read(self._output(problem, widths, index, x, generator))
                   for index in drawn]
        wanted = problem.as_read(draw.float_output)
        mixed = mix(outputs, lambda: wanted, generator)
        return group_distillation_loss(outputs, mixed, wanted, self.gammas, distance,
                                       self.detach_high)

    def _drawn(self, problem: UnitProblem, generator: torch.Generator) -> list[int]:
        """Which of the unit's widths a step has: one of each group."""
        return [group[int(torch.randint(len(group), (), generator=generator))]
                for group in places(self._groups(), problem.widths)]

    def _of_each(self, widths: LearnedWidths, problem: UnitProblem, draw: Draw,
                 generator: torch.Generator, distance: Distance) -> Tensor:
        """QDrop's loss of a step at a width of each group, added up (Eq. 2)."""
        losses = [self._of_one(index, widths, problem, draw, generator, distance)
                  for index in self._drawn(problem, generator)]
        return sum(losses[1:], losses[0])

    def _of_one(self, index: int, widths: LearnedWidths, problem: UnitProblem, draw: Draw,
                generator: torch.Generator, distance: Distance) -> Tensor:
        """QDrop's loss of a step, at one width."""
        assert draw.float_input is not None
        x = RandomDrop(self.drop_probability, generator)(
            draw.width_inputs[index], lambda: draw.float_input)
        return distance(self._output(problem, widths, index, x, generator), draw.float_output)

    def _output(self, problem: UnitProblem, widths: LearnedWidths, index: int, x: Tensor,
                generator: torch.Generator) -> Tensor:
        widths.use(problem.widths[index])
        with dropped_quantization(problem, self.drop_probability if self.drop_inside else 0.0,
                                  generator):
            return problem.forward(x)
