"""Codes that several widths share: a narrower code is the leading bits of the wider one.

Each width has statistics of its own (its inputs are those that the layers before give at that
width), and scales of its own. Minimised is, a row (output channel) at a time,

    sum over widths b of  importance_b * (y_sq - 2 w_b . cross_b + w_b^T gram_b w_b),
    w_b = scale_b * (code_b + offset),  code_b = leading b bits of the code,

over the codes and all scales. Coordinate descent: an element moves to the best of a few codes, for
each width the two that it would like most, wider bits following where their own wishes are. With
one width that is the exact minimiser over the element.

``nesting='floor'``: two's complement, ``code_b = code >> (B - b)``, the offset half a step, so that
the cells of a width are halves of those of the next narrower. ``'planes'``: Bit-split's planes,
``sign(code) * (|code| >> (B - b))``, no offset; the cell of zero is twice as wide as it should be
at every narrower width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.nesting import narrower_codes
from mmbitsplit.functional.solvers.error_feedback import one_thread
from mmbitsplit.structures import LayerStatistics, WeightSolution
from mmbitsplit.structures.options import check_value
from mmbitsplit.structures.solution import Nesting
from mmbitsplit.structures.spec import check_bits

Order = Literal['joint', 'up']
RANGES = 13  # ranges that a row's first scales are chosen from
LEAST_RANGE = 0.2  # of them, as a part of the largest weight
# Part of the error that no codes can help, as layers before have made it, which counts as a width's
# own. With all of it narrow widths say little in deep networks, without any they say too much: over
# the layers of YOLOX-nano this part takes 3/4 of what 3 bits can gain and less than half of what
# the others lose.
SPOILT_PART = 0.1
LEAST_SCALE = 1e-12  # of rows of zeros
STILL = 5e-3  # a row is at rest when a sweep takes away less than this part of what codes add


def solve_nested(statistics: Sequence[LayerStatistics], weights: Sequence[Tensor],
                 widths: Sequence[int], *, nesting: Nesting = 'floor', order: str = 'joint',
                 reference_bits: int = 3, max_sweeps: int = 20, tolerance: float = 1e-3,
                 ) -> WeightSolution:
    """Solves the codes of a layer for several widths at once.

    Args:
        statistics: One a width, with a ridge (``functional.add_ridge``) on the scale of the
            inputs of that width.
        weights: (G, M, N) float weight on that scale, one a width.
        widths: 2 to 8, rising.
        nesting: How narrower codes are made of the widest: ``'floor'`` or ``'planes'``.
        order: ``'joint'``: all widths at once. ``'up'``: the narrowest by itself, then of each
            wider one the bits that are left.
        reference_bits: Of ``'joint'``: a width's error counts in units of what it would have by
            itself and what this many bits would have, together: where that is small, as at 8
            bits, it may grow to this.
        max_sweeps: Most sweeps over all elements (of each width, with ``'up'``).
        tolerance: A row is done when no more than this part of its elements moved in a sweep.

    Returns:
        Codes, scales and offsets of the widest, those of the others in ``narrower``; ``history``
        of the weighted objective.

    Raises:
        ValueError: Widths that do not rise or are none, an unknown option, a gram that is not
            positive definite.
    """
    check_value('nesting', nesting, Nesting)
    check_value('order', order, Order)
    check_widths(widths)
    problem = _Problem.of(statistics, weights, tuple(widths), nesting == 'planes')
    start = problem.start(reference_bits)
    few = tolerance * problem.target.shape[-1]
    if order == 'joint':
        state = _Descent(problem, start, start.importance)
        state.run(start.importance, max_sweeps, few)
    else:
        only = torch.eye(len(widths), dtype=start.importance.dtype).expand(
            *start.importance.shape[:2], -1, -1)
        state = _Descent(problem, start, only[:, :, 0])
        for level in range(len(widths)):
            state.run(only[:, :, level], max_sweeps, few, settled=level)
    return state.solution(weights[-1].device)


def round_nested(weights: Sequence[Tensor], widths: Sequence[int], nesting: Nesting,
                 ) -> WeightSolution:
    """Rounds a weight to codes that all widths share, the scale of each fitted to the weight.

    The range is, for each row, that of least error, in parts of the least of each width, summed
    over the widths.

    Args:
        weights: (G, M, N) one a width, on the scale of its inputs.
        widths: Rising.
        nesting: See ``solve_nested``.

    Returns:
        As ``solve_nested``; the objective is left open.
    """
    planes, widest = nesting == 'planes', weights[-1].cpu()
    target = torch.stack([weight.cpu().to(widest) for weight in weights], 2)
    shifts = [widths[-1] - bits for bits in widths]
    errors, scales = _fits(target, torch.ones_like(target[:, 0]), _tops(widest), widths[-1],
                           shifts, planes)  # (RANGES, G, M, K)
    least = errors.amin(0, keepdim=True)
    best = (errors / torch.where(least > 0, least, 1.0)).sum(-1).argmin(0, keepdim=True)
    codes = _round(widest, _tops(widest).gather(0, best)[0], widths[-1], planes)
    device = weights[-1].device
    scale = scales.gather(0, best.unsqueeze(-1).expand(-1, *scales.shape[1:]))[0].to(widest)
    return _of_widths(codes.to(torch.int32).to(device),
                      [one.contiguous().to(device) for one in scale.unbind(-1)], widths, nesting)


def _of_widths(codes: Tensor, scales: Sequence[Tensor], widths: Sequence[int], nesting: Nesting,
               ) -> WeightSolution:
    """The solution of the widest with those of the others, objectives left open.

    Args:
        codes: (G, M, N) of the widest.
        scales: (G, M) one a width.
        widths: Rising.
        nesting: See ``solve_nested``.
    """
    made = {bits: WeightSolution(
        narrower_codes(codes, widths[-1], bits, nesting).to(torch.int8), scale,
        torch.zeros_like(scale), offset=None if nesting == 'planes' else scale / 2,
        ) for bits, scale in zip(widths, scales)}
    return replace(made.pop(widths[-1]), narrower=made, nesting=nesting)


def check_widths(widths: Sequence[int], name: str = 'widths') -> None:
    """Raises ``ValueError`` for widths that are none, or do not rise; ``name`` is the option's."""
    for bits in widths:
        check_bits(name, bits)
    if not widths or list(widths) != sorted(set(widths)):
        raise ValueError(f'{name}={list(widths)} is not allowed; give at least one, each once and '
                         'rising, as [3, 4, 6, 8].')


@dataclass(frozen=True)
class _Start:
    """Where the descent begins.

    Args:
        scale: (G, M, K) real units a code step.
        importance: (G, M, K) what each width's error is multiplied by.
    """

    scale: Tensor
    importance: Tensor


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Sums of all widths side by side; K widths.

    Args:
        gram: (G, N, K, N), columns in the order of the feedback.
        cross: (G, M, K, N) likewise.
        y_sq: (G, M, K).
        lower: (G, N, K, N) Cholesky factors of the grams.
        target: (G, M, K, N) float solutions.
        order: (G, N) columns by rising diagonal.
        widths: Rising.
        planes: Whether magnitudes are what nests.
    """

    gram: Tensor
    cross: Tensor
    y_sq: Tensor
    lower: Tensor
    target: Tensor
    order: Tensor
    widths: tuple[int, ...]
    planes: bool

    @classmethod
    def of(cls, statistics: Sequence[LayerStatistics], weights: Sequence[Tensor],
           widths: tuple[int, ...], planes: bool) -> '_Problem':
        if not len(statistics) == len(weights) == len(widths):
            raise ValueError(f'{len(widths)} widths have {len(statistics)} statistics and '
                             f'{len(weights)} weights; give one of each a width.')
        # Kernels compute on the CPU, wherever the sums come from.
        grams = [one.gram.cpu() for one in statistics]
        diagonals = torch.stack([gram.diagonal(dim1=1, dim2=2) for gram in grams])
        diagonal = (diagonals / diagonals.mean(2, keepdim=True)).sum(0)  # (G, N)
        order = diagonal.argsort(dim=1, descending=True, stable=True).flip(1)
        lower, target, cross = [], [], []
        for index, (one, gram) in enumerate(zip(statistics, grams)):
            rows = order.unsqueeze(2).expand_as(gram)
            grams[index] = gram = gram.gather(1, rows).gather(2, rows.mT)
            wanted = one.cross.cpu()
            wanted = wanted.gather(2, order.unsqueeze(1).expand_as(wanted))
            with one_thread():
                factor, info = torch.linalg.cholesky_ex(gram)
                if info.any():
                    raise ValueError('gram is not positive definite; add a ridge with '
                                     'functional.add_ridge.')
                target.append(torch.cholesky_solve(wanted.mT, factor).mT)
            lower.append(factor)
            cross.append(wanted)
        return cls(gram=torch.stack(grams, 2), cross=torch.stack(cross, 2),
                   y_sq=torch.stack([one.y_sq.cpu() for one in statistics], 2),
                   lower=torch.stack(lower, 2), target=torch.stack(target, 2), order=order,
                   widths=widths, planes=planes)

    @property
    def nesting(self) -> Nesting:
        """How codes nest."""
        return 'planes' if self.planes else 'floor'

    @property
    def offset(self) -> float:
        """Added to each code, in its steps."""
        return 0.0 if self.planes else 0.5

    @property
    def shifts(self) -> list[int]:
        """Bits that each width lacks to the widest."""
        return [self.widths[-1] - bits for bits in self.widths]

    @property
    def limits(self) -> tuple[int, int]:
        """Range of the codes of the widest."""
        return code_range(self.widths[-1], signed=True, narrow_range=self.planes)

    def levels(self, codes: Tensor, level: int) -> Tensor:
        """(G, M, N) real multiples of the scale that a width makes of codes of the widest."""
        narrower = narrower_codes(codes, self.widths[-1], self.widths[level], self.nesting)
        return narrower.to(self.target) + self.offset

    def start(self, reference_bits: int) -> _Start:
        """Scales by what nested rounding of the float solutions would cost, and importances.

        Rounding a column, all later ones making good for it, costs its error squared times the
        squared diagonal of the Cholesky factor.
        """
        squares = self.lower.diagonal(dim1=1, dim2=3).square()  # (G, K, N)
        found = {(level, bits): self._rounding(squares, level, bits).amin(0)
                 for level, own in enumerate(self.widths) for bits in {own, reference_bits}}
        alone, reference = (torch.stack([found[key] for key in enumerate(chosen)], -1)
                            for chosen in (self.widths, [reference_bits] * len(self.widths)))
        spoilt = (self.y_sq - torch.linalg.vecdot(self.target, self.cross)).clamp(min=0)
        total = SPOILT_PART * spoilt + alone + reference
        importance = 1 / torch.where(total > 0, total, 1.0)
        errors, scales = self._nested_rounding(squares)  # (RANGES, G, M, K)
        best = (errors * importance).sum(-1).argmin(0, keepdim=True).unsqueeze(-1)
        scale = scales.gather(0, best.expand(-1, *scales.shape[1:]))[0]
        return _Start(scale.to(self.target).contiguous(),
                      importance.to(self.target).contiguous())

    def _rounding(self, squares: Tensor, level: int, bits: int) -> Tensor:
        """Errors of a width's inputs with weights of so many bits alone, (ranges, G, M): of every
        second range, as it is an importance that comes of them."""
        target = self.target[:, :, level]
        return _fits(target.unsqueeze(2), squares[:, level:level + 1], _tops(target)[::2], bits,
                     [0], self.planes)[0][..., 0]

    def _nested_rounding(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """(RANGES, G, M, K) errors and scales of codes that all widths share."""
        return _fits(self.target, squares, _tops(self.target[:, :, -1]), self.widths[-1],
                     self.shifts, self.planes)


def _tops(target: Tensor) -> Tensor:
    """(RANGES, G, M) largest weights that codes of rows (G, M, N) may be made to reach."""
    top = target.abs().amax(-1)
    parts = torch.linspace(LEAST_RANGE, 1.0, RANGES, dtype=top.dtype, device=top.device)
    return torch.where(top > 0, top, LEAST_SCALE) * parts.view(-1, 1, 1)


def _round(target: Tensor, top: Tensor, bits: int, planes: bool) -> Tensor:
    """Codes of rows (G, M, N) that reach (G, M) largest weights, of a width by itself."""
    low, high = code_range(bits, signed=True, narrow_range=planes)
    reach = high if planes else high + 1
    return (target * (reach / top).unsqueeze(-1) - (0.0 if planes else 0.5)).round_().clamp_(
        low, high)


def _fits(target: Tensor, weight: Tensor, tops: Tensor, bits: int, shifts: list[int],
          planes: bool) -> tuple[Tensor, Tensor]:
    """Least ``sum weight (target - scale levels)^2`` over positive scales, and the scales.

    Args:
        target: (G, M, K, N) of widths that share codes.
        weight: (G, K, N).
        tops: (R, G, M) what the last width's codes reach.
        bits: Of that width.
        shifts: Bits that each lacks to it.
        planes: Whether magnitudes are what nests.

    Returns:
        (R, G, M, K) each, in float64.
    """
    from mmbitsplit.functional.kernels.nested_loops import range_fits
    low, high = code_range(bits, signed=True, narrow_range=planes)
    return range_fits(target, weight, tops, high if planes else high + 1, 0.0 if planes else 0.5,
                      shifts, planes, (low, high), LEAST_SCALE)


class _Descent:
    """Codes, scales and residuals of all widths, kept consistent while elements move."""

    residual: Tensor
    objective: Tensor

    def __init__(self, problem: _Problem, start: _Start, importance: Tensor):
        from mmbitsplit.functional.kernels.nested_loops import nested_feedback
        self.problem, self.scale = problem, start.scale.clone()
        groups, rows, _, columns = problem.target.shape
        self.codes = torch.empty(groups, rows, columns, dtype=torch.int32)
        nested_feedback(self.codes, problem.target, problem.lower, self.scale, problem.offset,
                        importance.contiguous(), problem.shifts, problem.planes, problem.limits)
        self.weighted = start.importance
        self.history: list[float] = []
        self.num_sweeps = 0
        self._fit_scales(anew=True)

    def run(self, importance: Tensor, max_sweeps: int, few: float, settled: int = 0) -> None:
        """Sweeps until every row is at rest.

        Args:
            importance: (G, M, K) of each width's error.
            max_sweeps: Most sweeps.
            few: A row is at rest when no more elements moved.
            settled: How many of the first widths keep their codes.
        """
        from mmbitsplit.functional.kernels.nested_loops import nested_sweep
        problem, closed = self.problem, torch.zeros(self.codes.shape[:2], dtype=torch.bool)
        least = ((problem.y_sq - torch.linalg.vecdot(problem.target, problem.cross)).clamp(min=0)
                 * importance).sum(-1)  # of float weights
        for _ in range(max_sweeps):
            moved = torch.where(closed, -1, 0)
            nested_sweep(self.codes, self.residual, problem.gram, self.scale,
                         importance.contiguous(), problem.shifts, problem.planes, problem.limits,
                         moved, settled)
            self.num_sweeps += 1
            before = self._error(importance)
            self._fit_scales()
            now = self._error(importance)
            closed = closed | (moved <= few) | (before - now <= STILL * (before - least))
            if closed.all():
                break

    def _error(self, importance: Tensor) -> Tensor:
        """(G, M) of all widths together, as scales were last fitted."""
        return (self.objective * importance).sum(-1)

    def _fit_scales(self, anew: bool = False) -> None:
        """Closed form for each width (paper, Eq. 4), and residuals with them.

        Residuals that sweeps have kept up to date in float64 say what codes times gram is; where
        there are none yet (``anew``), it is multiplied.
        """
        problem, scales, residuals, objectives, before = self.problem, [], [], [], []
        anew = anew or problem.cross.dtype != torch.float64 \
            or bool((self.scale <= LEAST_SCALE).any())
        for level in range(len(problem.widths)):
            levels = problem.levels(self.codes, level)
            cross = problem.cross[:, :, level]
            if anew:
                product = levels @ problem.gram[:, :, level]
            else:
                product = (cross - self.residual[:, :, level]).div_(
                    self.scale[..., level].unsqueeze(-1))
            energy = torch.linalg.vecdot(levels.double(), product.double())
            correlation = torch.linalg.vecdot(levels.double(), cross.double())
            old = self.scale[..., level].double()
            usable = (energy > 0) & (correlation > 0)
            scale = torch.where(usable, correlation / torch.where(usable, energy, 1.0), old)
            y_sq = problem.y_sq[..., level].double()
            before.append(y_sq - 2 * old * correlation + old.square() * energy)
            objectives.append(y_sq - 2 * scale * correlation + scale.square() * energy)
            scales.append(scale.to(cross))
            residuals.append(cross - scales[-1].unsqueeze(-1) * product)
        self.scale = torch.stack(scales, -1)
        self.residual = torch.stack(residuals, 2)
        self.objective = torch.stack(objectives, -1)
        self.history += [float((torch.stack(errors, -1) * self.weighted).sum())
                         for errors in (before, objectives)]

    def solution(self, device: torch.device) -> WeightSolution:
        """Of the widest, with the others."""
        problem = self.problem
        where = problem.order.unsqueeze(1).expand_as(self.codes)
        codes = torch.empty_like(self.codes).scatter_(2, where, self.codes)
        whole = _of_widths(codes.to(device), [scale.to(device) for scale in self.scale.unbind(-1)],
                           problem.widths, problem.nesting)
        objectives = dict(zip(problem.widths, self.objective.to(device).unbind(-1)))
        narrower = {bits: replace(one, objective=objectives[bits])
                    for bits, one in whole.narrower.items()}
        return replace(whole, objective=objectives[problem.widths[-1]], narrower=narrower,
                       num_sweeps=self.num_sweeps, history=tuple(self.history))
