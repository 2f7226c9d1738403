"""Solutions of a layer that a method gives, judged on positions they were not fitted to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.methods import Method
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.output_error import Judgement, output_error
from mmbitsplit.solving.positions import Rows
from mmbitsplit.structures import LayerStatistics, RowStatistics, WeightSolution, WeightSpec

ROUNDING = 'rounding'  # the name of plain rounding among the candidates
# Output channels are shared out by so many: matrix products give a row the same last bits in any
# whole number of their tiles, so that a solution does not depend on the number of processes.
CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The solution that was taken, and what it was taken from.

    Args:
        solution: Codes and scales.
        judged: Its error and bias correction.
        error_rounding: Of plain rounding with the same input quantization.
        guard_taken: Whether plain rounding was taken instead of the method's codes.
        sweeps: Of the descent of the method's best solution.
        errors: Of every candidate by name.
        narrower: By number of bits, the solution for each narrower width, judged.
    """

    solution: WeightSolution
    judged: Judgement
    error_rounding: float
    guard_taken: bool
    sweeps: int
    errors: Mapping[str, float] = field(default_factory=dict)
    narrower: Mapping[int, tuple[WeightSolution, Judgement]] = field(default_factory=dict)


def choose_solution(method: Method, statistics: LayerStatistics | RowStatistics, weight: Tensor,
                    spec: WeightSpec, held_out: Rows, team: Team) -> Choice:
    """Takes the candidate of least error; of equal ones the first, and NaN is never the least.

    Args:
        method: Gives the candidates.
        statistics: What they are fitted to.
        weight: (G, M, N) float weight on the scale of the inputs.
        spec: Width, and how plain rounding finds its scale.
        held_out: Positions to judge on, of this process; ``x`` as it enters the product.
        team: Who holds the others.
    """
    def judge(solution: WeightSolution) -> Judgement:
        return output_error(solution.weight, statistics, held_out.x, held_out.y, method, team)

    solutions = method_candidates(method, statistics, weight, spec.num_bits, team)
    judged = {name: judge(solution) for name, solution in solutions.items()}
    taken = least(judged)
    solution, rounded = solutions[taken], plain_rounding(weight, spec)
    of_rounding = judge(rounded)
    guard_taken = _is_rounded(method, judged[taken], of_rounding)
    narrower = {}
    for num_bits, one in solution.narrower.items():
        pair = one, judge(one)
        plain = plain_rounding(weight, replace(spec, num_bits=num_bits))
        plain_pair = plain, judge(plain)
        narrower[num_bits] = plain_pair if _is_rounded(method, pair[1], plain_pair[1]) else pair
    errors = {name: judgement.error for name, judgement in judged.items()}
    if method.guard:
        errors[ROUNDING] = of_rounding.error
    return Choice(solution=rounded if guard_taken else solution,
                  judged=of_rounding if guard_taken else judged[taken],
                  error_rounding=of_rounding.error, guard_taken=guard_taken,
                  sweeps=solution.num_sweeps, errors=errors, narrower=narrower)


def only_choice(method: Method, statistics: LayerStatistics | RowStatistics,
                solution: WeightSolution, held_out: Rows, team: Team) -> Choice:
    """A solution that there is nothing to choose beside, judged.

    Args:
        method, statistics, held_out, team: As for ``choose_solution``.
        solution: It.
    """
    judged = output_error(solution.weight.to(statistics.x_sum.dtype), statistics, held_out.x,
                          held_out.y, method, team)
    return Choice(solution=solution, judged=judged, error_rounding=judged.error,
                  guard_taken=False, sweeps=0)


def _is_rounded(method: Method, solved: Judgement, rounded: Judgement) -> bool:
    """Whether the guard takes plain rounding; NaN is no solution either."""
    return method.guard and not solved.error <= rounded.error


def least(judged: Mapping[str, Judgement]) -> str:
    """Name of the candidate of least error: the first where none is a number."""
    numbers = {name: one.error for name, one in judged.items() if one.error == one.error}
    return min(numbers or judged, key=lambda name: numbers.get(name, 0.0))


def plain_rounding(weight: Tensor, spec: WeightSpec) -> WeightSolution:
    """What the guard falls back to and every report compares with."""
    scale = weight_scale(weight, spec.num_bits, spec.scale_search)
    codes = round_weight(weight, scale, spec.num_bits)
    return WeightSolution(codes.to(torch.int8), scale, torch.zeros_like(scale))


def method_candidates(method: Method, statistics: LayerStatistics | RowStatistics, weight: Tensor,
                      num_bits: int, team: Team) -> dict[str, WeightSolution]:
    """The method's candidates by name; every process solves some of the output channels.

    Raises:
        ValueError: There is none, or two have one name.
    """
    share = share_of_outputs(weight.shape[1], team)
    if share == slice(None):
        return _named(method, list(method.candidates(statistics, weight, num_bits)))
    names = ('y_sum', 'y') if isinstance(statistics, RowStatistics) else ('y_sum', 'cross', 'y_sq')
    mine = replace(statistics, **{name: getattr(statistics, name)[:, share] for name in names})
    parts = team.gather(list(method.candidates(mine, weight[:, share], num_bits)))
    return {name: _joined([part[index][1] for part in parts])
            for index, name in enumerate(_named(method, parts[0]))}


def share_of_outputs(outputs: int, team: Team) -> slice:
    """The output channels that this process solves: all where there are few."""
    if team.size == 1 or outputs < team.size * CHANNELS:
        return slice(None)
    return team.share(outputs, CHANNELS)


def whole_solution(mine: WeightSolution, share: slice, team: Team) -> WeightSolution:
    """One solution of all output channels, from this process's and the others'."""
    return mine if share == slice(None) else _joined(team.gather(mine))


def _joined(parts: list[WeightSolution]) -> WeightSolution:
    """One solution of all output channels, from those of their shares."""
    joined = {name: torch.cat([getattr(part, name) for part in parts], 1)
              for name in ('codes', 'scale', 'objective', 'offset', 'num_bits')
              if getattr(parts[0], name) is not None}
    return WeightSolution(
        **joined, nesting=parts[0].nesting, num_sweeps=max(part.num_sweeps for part in parts),
        narrower={num_bits: _joined([part.narrower[num_bits] for part in parts])
                  for num_bits in parts[0].narrower})


def _named(method: Method, found: list[tuple[str, WeightSolution]]) -> dict[str, WeightSolution]:
    """Candidates by name."""
    named, names = dict(found), [name for name, _ in found]
    if not named or len(named) < len(names) or ROUNDING in named:
        raise ValueError(
            f'{type(method).__name__}.candidates yields {names or "nothing"}; it must yield at '
            f"least one candidate, and names of their own, of which '{ROUNDING}' is taken: plain "
            'rounding is a candidate wherever guard=True.')
    return named
