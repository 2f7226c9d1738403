"""Roundings of a unit: made soft, seen as if whole, decided, made whole, taken back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmbitsplit.functional import (
    per_input,
    round_weight,
    rows_to_weight,
    weight_rows,
    weight_scale,
)
from mmbitsplit.functional.quantizers.soft_rounding import (
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from mmbitsplit.functional.solvers.learned_rounding import most_decided
from mmbitsplit.methods.unit_problem import UnitCall, UnitLayer, UnitProblem, positions
from mmbitsplit.structures import LayerSolution

Start = Literal['solver', 'nearest']
FAR = 6.0  # a v so far from 0 that h is 0 or 1 and has no gradient, whatever the last steps add


def soften(problem: UnitProblem, start: Start = 'solver', reach: float = 1.0,
           ) -> dict[str, Tensor]:
    """Lets gradients choose between two neighbouring codes of each weight.

    Args:
        problem: Its layers have whole codes.
        start: ``'solver'`` for the codes that they have, each with its nearer neighbour, which is
            what they are made whole to as long as nothing is learned. ``'nearest'`` for the codes
            below and above the float weight, at the scale of least squared error, as papers have
            it.
        reach: Soft codes begin this part of the way from the whole code to the float weight. At 1
            a unit begins as the float unit, and what a solver has made good between codes is
            forgotten; at 0.2 to 0.5 it begins near the solver's error, and few codes move.

    Returns:
        v of each layer's ``h(v)`` by name, to be learned.
    """
    for layer in problem.layers.values():
        if start == 'nearest':
            layer.install(rounded(layer))
        layer.weight_quantizer.soften(positions(layer))
    soft = roundings(problem)
    if reach != 1.0:
        with torch.no_grad():
            for v in soft.values():
                v.copy_(_nearer(v, reach))
    return soft


def _nearer(v: Tensor, reach: float) -> Tensor:
    """v with h the given part as far from where it rounds to, on the same side of one half."""
    up, h = v >= 0, rectified_sigmoid(v)
    away = torch.where(up, 1 - h, h) * reach
    moved = inverse_rectified_sigmoid(torch.where(up, 1 - away, away))
    return torch.where(up, moved.clamp(min=0.0), torch.minimum(moved, v))


def roundings(problem: UnitProblem) -> dict[str, Tensor]:
    """v of all layers that are soft, by name."""
    found = {name: layer.weight_quantizer.rounding for name, layer in problem.layers.items()}
    return {f'{name}.rounding': v for name, v in found.items() if v is not None}


def harden(problem: UnitProblem) -> None:
    """Ends all that is learned: plain quantizers from here on."""
    for layer in problem.layers.values():
        layer.weight_quantizer.harden()
        for quantizer in (layer.input_quantizer, layer.output_quantizer):
            if quantizer is not None:
                quantizer.harden()


def rounded(layer: UnitLayer) -> LayerSolution:
    """The layer's solution with the float weight rounded to the nearest codes instead."""
    geometry, solution = layer.geometry, layer.solution()
    rows = weight_rows(layer.weight, geometry)
    inputs = solution.qparams
    if inputs is not None and inputs.unit:  # weights carry the scales of the inputs
        rows = rows * per_input(inputs.scale, geometry).unsqueeze(1)
    scale = weight_scale(rows, solution.num_bits)
    codes = rows_to_weight(round_weight(rows, scale, solution.num_bits), geometry)
    return replace(solution, codes=codes.to(torch.int8), weight_scale=scale.flatten(),
                   weight_offset=None, bias=layer.bias)


@contextmanager
def as_if_whole(soft: Mapping[str, Tensor]) -> Iterator[None]:
    """Each rounding is 0 or 1 inside, as ``harden`` would make it, and as before afterwards."""
    before = {name: v.detach().clone() for name, v in soft.items()}
    try:
        with torch.no_grad():
            for v in soft.values():
                v.copy_(torch.where(v >= 0, FAR, -FAR))
        yield
    finally:
        with torch.no_grad():
            for name, v in soft.items():
                v.copy_(before[name])


@torch.no_grad()
def decide(soft: Mapping[str, Tensor], share: float = 0.5) -> None:
    """Makes the roundings 0 or 1 that are nearest to it, for good: they get no gradients then.

    Args:
        soft: v by name, changed in place.
        share: Part of the undecided ones of all layers together.
    """
    flat = torch.cat([v.flatten() for v in soft.values()])
    chosen = most_decided(rectified_sigmoid(flat), share)
    first = 0
    for v in soft.values():
        mine = chosen[first:first + v.numel()].view(v.shape)
        v.copy_(torch.where(mine, torch.where(v >= 0, FAR, -FAR), v))
        first += v.numel()


def repair(problem: UnitProblem, start: Mapping[str, LayerSolution], images: int = 128,
           ) -> tuple[str, ...]:
    """Gives layers their solutions of the start back, as long as that lowers the unit's error.

    Small layers are decided by a few roundings: one that hardens badly can spoil what the others
    gained. The layer that gains most goes first; where all of the start is still better, all go.

    Args:
        problem: Hardened. It is judged on calls that are fitted to.
        start: Solutions by layer.
        images: About how many, or crops of them, are looked at.

    Returns:
        Names of the layers that were given back.
    """
    calls = some_of(problem.fit, images)
    learned = problem.solutions()
    _install(problem, start)
    error_of_start = problem.error(calls)
    _install(problem, learned)
    least, given_back = problem.error(calls), []
    while len(given_back) < len(learned):
        errors = {}
        for name in learned.keys() - given_back:
            problem.layers[name].install(start[name])
            errors[name] = problem.error(calls)
            problem.layers[name].install(learned[name])
        best = min(sorted(errors), key=errors.__getitem__)
        if not errors[best] < least:
            break
        problem.layers[best].install(start[best])
        least = errors[best]
        given_back.append(best)
    if least <= error_of_start:
        return tuple(given_back)
    _install(problem, start)
    return tuple(learned)


def some_of(calls: Sequence[UnitCall], images: int) -> list[UnitCall]:
    """Calls of about so many images, from all over."""
    total = sum(len(call.float_output) for call in calls)
    step = max(1, total // images)
    return list(calls[::step]) if len(calls) >= step else list(calls[:1])


def _install(problem: UnitProblem, solutions: Mapping[str, LayerSolution]) -> None:
    for name, layer in problem.layers.items():
        layer.install(solutions[name])
