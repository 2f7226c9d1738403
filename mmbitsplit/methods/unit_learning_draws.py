"""Mini-batches of a unit's calls: images of one shape, or of each level of a pyramid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmbitsplit.functional.solvers.learned_rounding import along
from mmbitsplit.methods.unit_problem import UnitCall, spread

Levels = Literal['mixed', 'each']


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Images, crops or rows of one shape.

    Args:
        quantized_input, float_output: As of ``UnitCall``.
        float_input: The same, ``None`` where nobody asked for it.
        group: Number of the calls that they are of; see ``Draws.groups``.
        width_inputs: As of ``UnitCall``.
    """

    quantized_input: Tensor
    float_output: Tensor
    float_input: Tensor | None
    group: int
    width_inputs: tuple[Tensor, ...] = ()


class Draws:
    """Draws from calls, each image of a mini-batch once.

    Args:
        calls: To draw from.
        batch_size: Most images, or crops of them.
        rows: Most rows instead, where outputs are matrices; ``None`` for ``batch_size``.
        levels: ``'mixed'`` draws of one shape a step, each as often as it has images. ``'each'``
            draws of each level a step: calls of one shape and of one place among those of their
            batch, such as those of a head called once a pyramid level.
        float_inputs: Whether to hand out these, too.
        joined: Whether the calls of a group are copied into one first, which saves many small
            operations a step; by default where they are on no CPU.

    Attributes:
        groups: Calls that are drawn from together, in the order of their first.
    """

    def __init__(self, calls: Sequence[UnitCall], batch_size: int, rows: int | None = None,
                 levels: Levels = 'mixed', float_inputs: bool = False,
                 joined: bool | None = None):
        self.batch_size, self.rows, self.levels = batch_size, rows or batch_size, levels
        self.float_inputs = float_inputs
        groups: dict[tuple, list[UnitCall]] = {}
        for call in calls:
            key = (tuple(call.quantized_input.shape[1:]), tuple(call.float_output.shape[1:]),
                   call.number if levels == 'each' else 0)
            groups.setdefault(key, []).append(call)
        if joined is None:
            joined = any(call.float_output.device.type != 'cpu' for call in calls)
        self.groups = [[_join(group)] if joined else group for group in groups.values()]

    def __call__(self, generator: torch.Generator) -> list[Draw]:
        """The mini-batches of a step: one, or one a level.

        Args:
            generator: Of the step, on the CPU wherever the calls are.
        """
        counts = [sum(len(call.float_output) for call in calls) for calls in self.groups]
        if self.levels == 'each':
            chosen = range(len(counts))
        else:
            share = torch.tensor(counts).double()
            chosen = [int(torch.multinomial(share, 1, generator=generator))]
        return [self._of(group, counts[group], generator) for group in chosen]

    def _of(self, group: int, count: int, generator: torch.Generator) -> Draw:
        calls = self.groups[group]
        size = self.rows if calls[0].float_output.dim() == 2 else self.batch_size
        drawn = torch.randperm(count, generator=generator)[:size].sort().values
        taken, first = [], 0
        for call in calls:
            last = first + len(call.float_output)
            places = drawn[(drawn >= first) & (drawn < last)] - first
            first = last
            if len(places):
                places = places.to(call.float_output.device)
                maps = [call.quantized_input, call.float_output, *call.width_inputs]
                maps += [call.float_input] if self.float_inputs else []
                taken.append([one.index_select(0, places) for one in maps])
        quantized, output, *rest = (torch.cat(parts) for parts in zip(*taken, strict=True))
        plain = rest.pop() if self.float_inputs else None
        return Draw(quantized_input=quantized, float_output=output, float_input=plain,
                    group=group, width_inputs=tuple(rest))

    def variances(self, as_read: Callable[[Tensor], Tensor], importance: Tensor | None,
                  channel_dim: int) -> list[float]:
        """Mean square of the float outputs about their mean, by group.

        Args:
            as_read: What others see of an output.
            importance: (C,) weights of the channels, or ``None``.
            channel_dim: Of the outputs.
        """
        found = []
        for calls in self.groups:
            square = total = count = 0.0
            for call in calls:
                wanted = as_read(call.float_output).double()
                weight = torch.ones_like(wanted) if importance is None else \
                    along(importance, wanted, channel_dim).expand_as(wanted)
                square += float((weight * wanted.square()).sum())
                total += float((weight * wanted).sum())
                count += float(weight.sum())
            found.append(spread(square, total, count) / max(count, 1e-30))
        return found


def _join(calls: Sequence[UnitCall]) -> UnitCall:
    """Calls of one shape as one."""
    if len(calls) == 1:
        return calls[0]
    maps = {name: torch.cat([getattr(call, name) for call in calls])
            for name in ('quantized_input', 'float_input', 'float_output')}
    widths = zip(*(call.width_inputs for call in calls), strict=True)
    return replace(calls[0], **maps, width_inputs=tuple(torch.cat(parts) for parts in widths))
