"""The one loop that all methods of learned rounding share: what is learned, by what loss, when.

A method makes its parameters learnable (``soften``; quantizers that give gradients to scales and
biases), says in a ``Learning`` how they are learned, and calls ``learn``. What that does follows
from the calibration's seed, the unit and the step alone, so that it can be left in the middle and
taken up again.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional.patches import output_channel_dim
from mmbitsplit.functional.quantizers.soft_rounding import rectified_sigmoid
from mmbitsplit.functional.solvers.learned_rounding import (
    BETA_END,
    BETA_START,
    beta_at,
    decided_share,
    reconstruction_loss,
    rounding_regulariser,
)
from mmbitsplit.methods.unit_learning_draws import Draw, Draws, Levels
from mmbitsplit.methods.unit_learning_optimizers import GroupOptimizer, ParameterGroup
from mmbitsplit.methods.unit_learning_state import as_if_whole, decide, roundings
from mmbitsplit.methods.unit_problem import UnitProblem

LossForm = Literal['published', 'scale_free']
Distance = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[Draw, torch.Generator, Distance], Tensor]
ROUNDS = 10  # of extra steps, each begun by deciding half of what is left: at most 0.1 % in the end
BEFORE = -1  # the step whose random numbers the error of the start is drawn by
TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Push:
    """What drives roundings to 0 or 1.

    Args:
        weight: Of the regulariser. In the published form it is summed over weights, and means as
            much as outputs are large. In the scale-free form it is their mean, in parts of the
            relative error that the whole codes of the start have, and the weight a pure number:
            100 to 1000 where roundings are free from the start, as in the papers; 1 is too little
            to decide anything, which is left to extra steps then.
        warm_start: Part of the steps that have no push.
        beta_start, beta_end: Its exponent, falling along a line.
    """

    weight: float
    warm_start: float = 0.2
    beta_start: float = BETA_START
    beta_end: float = BETA_END


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a unit is learned.

    Args:
        groups: What is learned. Roundings that are soft and in no group stay as they are.
        steps: Of the schedules.
        batch_size: Most images of a step, or crops of them; of each level with
            ``levels='each'``.
        stage: Its name, for methods that learn several times.
        rows: Most rows of a step where the unit gives a matrix, ``None`` for ``batch_size``.
        levels: See ``Draws``; each level's loss counts alike.
        loss: ``'published'``: mean over images and places of the sum over channels.
            ``'scale_free'``: relative to the variance of the float outputs drawn from.
        norm: The power that errors are raised to.
        weighted: Whether channels count as ``problem.importance`` says, in parts of its mean.
        push: ``None`` for none.
        extra_steps: Most steps after the schedules, taken while more than ``undecided`` of the
            roundings are: the nearest to 0 and 1 are decided in ten rounds, half of them in each,
            and the others make good what that does.
        undecided: Part of the roundings that may be.
        judge_every: Steps between judgements on held-out calls, all codes whole; the best is
            kept, the start among them. 0 for none: the last is kept.
        feed: What the unit is given for a draw, instead of its quantized input; may draw from the
            generator. It asks for float inputs.
        objective: What is minimised for a draw, beside the push, instead of the error of the output
            on ``feed``. Given the draw, the step's generator, and the distance of an output of the
            unit from what it is to be, in the form that ``loss`` names.
        inside: Around each of the unit's forward passes while it is learned, made from the step's
            generator.
        steps_before, steps_after: Of other stages, for the progress that is told.
    """

    groups: Sequence[ParameterGroup]
    steps: int
    batch_size: int
    stage: str = 'weights'
    rows: int | None = None
    levels: Levels = 'mixed'
    loss: LossForm = 'published'
    norm: float = 2.0
    weighted: bool = False
    push: Push | None = None
    extra_steps: int = 0
    undecided: float = 1e-3
    judge_every: int = 0
    feed: Callable[[Draw, torch.Generator], Tensor] | None = None
    objective: Objective | None = None
    inside: Callable[[torch.Generator], AbstractContextManager] | None = None
    steps_before: int = 0
    steps_after: int = 0


@dataclass(frozen=True)
class Learned:
    """What came of it; the parameters hold the rest.

    Args:
        figures: ``steps`` taken, ``extra_steps`` of them after the schedules, ``undecided`` share
            of the roundings before they are made whole, errors on held-out calls as soft as they
            are (``soft_error``) and whole (``hard_error``); with judgements, ``best_step`` and
            ``best_error``.
        finished: Parameters and figures of this stage and those before, by stage.
    """

    figures: dict[str, float] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """The same in words, for the report."""
        got = self.figures
        if 'undecided' not in got:
            return ()
        extra = f' and {got["extra_steps"]:g} more' if got['extra_steps'] else ''
        kept = f'; the codes of step {got["best_step"]:g} were the best there and are kept' \
            if 'best_step' in got else ''
        return (f'{100 * (1 - got["undecided"]):.4g} % of the roundings were decided (0 or 1) '
                f'after {got["steps"] - got["extra_steps"]:g} iterations{extra}, the others were '
                f'made whole then: error {got["soft_error"]:.4g} before, {got["hard_error"]:.4g} '
                f'after, on images held out{kept}',)


NOTHING = Learned()


def learn(problem: UnitProblem, what: Learning, before: Learned = NOTHING) -> Learned:
    """Learns the parameters of a unit in place; soft codes stay soft.

    Args:
        problem: The unit. Gradients are enabled, and what is learned requires them.
        what: How. Each stage of a unit has a name of its own.
        before: What the stage before has given, if there was one.

    Raises:
        ValueError: Importance is asked for and there is none, or of another number of channels.
    """
    return _Learner(problem, what, before).run()


def output_dim(problem: UnitProblem, output: Tensor) -> int:
    """The dimension of a unit's outputs that channels run along."""
    return output_channel_dim(output.shape, [*problem.layers.values()][-1].geometry)


class _Learner:
    """One run of ``learn``.

    Attributes:
        step: The next one.
    """

    def __init__(self, problem: UnitProblem, what: Learning, before: Learned):
        self.problem, self.what = problem, what
        self.soft = roundings(problem)
        self.parameters = {name: parameter for group in what.groups
                           for name, parameter in group.parameters.items()}
        self.optimizers = [GroupOptimizer(group) for group in what.groups if group.parameters]
        self.draws = Draws(problem.fit, what.batch_size, what.rows, what.levels,
                           float_inputs=what.feed is not None or what.objective is not None)
        self.dim = output_dim(problem, problem.fit[0].float_output)
        self.importance = self._importance() if what.weighted else None
        self.variances = self.draws.variances(problem.as_read, self.importance, self.dim) \
            if what.loss == 'scale_free' else [1.0] * len(self.draws.groups)
        self.step, self.finished = 0, before.finished
        self.error_of_start, self.best_error, self.best_step = 1.0, float('inf'), 0
        self.best: dict[str, Tensor] = {}

    def run(self) -> Learned:
        """Learns from the start, or from where a process that was killed had been."""
        what, state = self.what, self.problem.snapshots.load() or {}
        finished = state.get('finished', {})
        if what.stage in finished:
            self._put(finished[what.stage]['parameters'])
            return Learned(finished[what.stage]['figures'],
                           {**self.finished, what.stage: finished[what.stage]})
        if state.get('stage') == what.stage:
            self._restore(state)
        else:
            self._begin()
        while self.optimizers and self.step < what.steps:
            self._take_step()
        self._go_on_deciding()
        figures = self._figures()
        if self.best:
            self._put(self.best)
        mine = {'parameters': self._parameters(), 'figures': figures}
        return Learned(figures, {**self.finished, what.stage: mine})

    def _begin(self) -> None:
        if self.what.loss == 'scale_free' and self.what.push is not None:
            with torch.no_grad(), as_if_whole(self.soft):
                losses = [self._loss(draw, draw.quantized_input)
                          for draw in self.draws(self.problem.generator(BEFORE))]
            self.error_of_start = float(sum(losses)) / len(losses)
        self._judge()

    def _take_step(self) -> None:
        problem, what = self.problem, self.what
        generator = problem.generator(self.step)
        draws = self.draws(generator)
        loss = sum(self._learning_loss(draw, generator) for draw in draws) / len(draws)
        push = self._push()
        if push is not None:
            loss = loss + push
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step(self.step, what.steps)
        self.step += 1
        if what.judge_every and self.step % what.judge_every == 0:
            self._judge()
        problem.progress(what.steps_before + min(self.step, what.steps),
                         what.steps_before + what.steps + what.steps_after)
        if problem.snapshots.due():
            problem.snapshots.save(self._state())

    def _learning_loss(self, draw: Draw, generator: torch.Generator) -> Tensor:
        x = draw.quantized_input if self.what.feed is None else self.what.feed(draw, generator)
        inside = nullcontext() if self.what.inside is None else self.what.inside(generator)
        with inside:
            if self.what.objective is None:
                return self._loss(draw, x)
            return self.what.objective(draw, generator, partial(self._distance, draw))

    def _loss(self, draw: Draw, x: Tensor) -> Tensor:
        return self._distance(draw, self.problem.forward(x), draw.float_output)

    def _distance(self, draw: Draw, output: Tensor, wanted: Tensor) -> Tensor:
        read, what = self.problem.as_read, self.what
        loss = reconstruction_loss(read(output), read(wanted), self.dim, what.norm,
                                   self.importance)
        if what.loss == 'published':
            return loss
        channels = draw.float_output.shape[self.dim]
        return loss / (channels * max(TINY ** 2, self.variances[draw.group]) ** (what.norm / 2))

    def _push(self) -> Tensor | None:
        push = self.what.push
        if push is None or not self.soft:
            return None
        beta = beta_at(self.step, self.what.steps, push.warm_start, push.beta_start,
                       push.beta_end)
        if beta is None:
            return None
        total = sum(rounding_regulariser(rectified_sigmoid(v), beta) for v in self.soft.values())
        if self.what.loss == 'published':
            return push.weight * total
        count = sum(v.numel() for v in self.soft.values())
        return push.weight * max(TINY, self.error_of_start) / count * total

    def _go_on_deciding(self) -> None:
        """Extra steps: decides half of what is undecided, and lets the rest make good for it."""
        what, each = self.what, -(-self.what.extra_steps // ROUNDS)
        last = what.steps + what.extra_steps
        while self.soft and self.step < last:
            if (self.step - what.steps) % each == 0:
                if self._undecided() <= what.undecided:
                    break
                decide(self.soft)
            self._take_step()

    def _undecided(self) -> float:
        return 1 - decided_share(torch.cat([rectified_sigmoid(v.detach()).flatten()
                                            for v in self.soft.values()]))

    def _judge(self) -> None:
        """Keeps the parameters if the whole codes are the best so far on held-out calls."""
        if not self.what.judge_every:
            return
        error = self._hard_error()
        if error < self.best_error:
            self.best, self.best_error, self.best_step = self._parameters(), error, self.step

    def _hard_error(self) -> float:
        with as_if_whole(self.soft):
            return self.problem.error(self.problem.judge)

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {
            'steps': self.step, 'extra_steps': max(0, self.step - self.what.steps)}
        if self.soft:
            figures |= {'undecided': self._undecided(),
                        'soft_error': self.problem.error(self.problem.judge)}
        figures['hard_error'] = self._hard_error()
        if self.what.judge_every:
            if self.best_step != self.step and figures['hard_error'] < self.best_error:
                self.best, self.best_step = self._parameters(), self.step
                self.best_error = figures['hard_error']
            figures |= {'best_step': self.best_step, 'best_error': self.best_error}
        return figures

    def _importance(self) -> Tensor:
        found, unit = self.problem.importance, self.problem.unit.name
        channels = self.problem.fit[0].float_output.shape[self.dim]
        if found is None:
            raise ValueError(
                f"unit '{unit}': the loss is to be weighted by the importance of the unit's "
                "channels, and calibration has gathered none. Use importance='none', or a method "
                'that declares that it needs it.')
        if tuple(found.shape) != (channels,):
            raise ValueError(
                f"unit '{unit}': importance has shape {tuple(found.shape)}, the unit's output "
                f"{channels} channels; it must be one number a channel. Use importance='none'.")
        mean = float(found.double().mean())
        return torch.ones_like(found) if mean <= 0 else (found.double() / mean).to(found.dtype)

    # What is kept of it.

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _state(self) -> dict[str, Any]:
        return {'stage': self.what.stage, 'finished': self.finished, 'step': self.step,
                'parameters': self._parameters(),
                'optimizers': [optimizer.state() for optimizer in self.optimizers],
                'error_of_start': self.error_of_start, 'best': self.best,
                'best_error': self.best_error, 'best_step': self.best_step}

    def _restore(self, state: dict[str, Any]) -> None:
        self._put(state['parameters'])
        for optimizer, kept in zip(self.optimizers, state['optimizers'], strict=True):
            optimizer.restore(kept)
        self.step, self.error_of_start = state['step'], state['error_of_start']
        self.best = state['best']
        self.best_error, self.best_step = state['best_error'], state['best_step']
