"""Sampled positions of a layer, joined from what its calls left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.team import Team


@dataclass(frozen=True)
class Rows:
    """Positions as columns.

    Args:
        x: (G, N, K) real inputs of the product in the quantized model.
        y: (G, M, K) float outputs without bias.
        calls: Batch and number of positions of each call that they come from, in order.
    """

    x: Tensor
    y: Tensor
    calls: tuple[tuple[int, int], ...] = ()

    def by_call(self) -> list[tuple[int, 'Rows']]:
        """Batch and positions of each call."""
        sizes = [size for _, size in self.calls]
        return [(batch, Rows(x.clone(), y.clone())) for (batch, _), x, y in zip(
            self.calls, self.x.split(sizes, -1), self.y.split(sizes, -1))] if sizes else []


@dataclass(frozen=True)
class LayerPositions:
    """All positions of a layer that this process holds.

    Args:
        captures: Of every call in the quantized model.
        targets: Float outputs (G, M, K) of the same calls at the same positions.
        team: Who holds the others.
        weight: (G, M, N) the layer's weight: says what no positions look like.
    """

    captures: Sequence[CallCapture]
    targets: Sequence[Tensor]
    team: Team
    weight: Tensor | None = None

    def split(self) -> tuple[Rows, Rows]:
        """Positions to fit to, and those held out to judge on; all twice when none are apart."""
        fit = sum(int((~capture.held_out).sum()) for capture in self.captures)
        held_out = sum(int(capture.held_out.sum()) for capture in self.captures)
        fit, held_out = map(sum, zip(*self.team.gather((fit, held_out))))
        if not fit or not held_out:
            everything = self._join(lambda capture: slice(None))
            return everything, everything
        return (self._join(lambda capture: _chosen(~capture.held_out)),
                self._join(lambda capture: _chosen(capture.held_out)))

    def other_batches(self) -> frozenset[int]:
        """Every second batch that reaches the layer, to judge on what was found on the rest."""
        seen = sorted({batch for part in self.team.gather(
            [capture.batch for capture in self.captures]) for batch in part})
        return frozenset(seen[1::2])

    def thin_apart(self, most: int, others: frozenset[int]) -> tuple[Rows, Rows]:
        """About ``most`` positions of all batches but the others, and of the others."""
        def part(chosen: Callable[[int], bool]) -> Rows:
            count = sum(capture.held_out.numel() for capture in self.captures
                        if chosen(capture.batch))
            step = max(1, self.team.total(count) // most)
            return self._join(lambda capture: slice(0, None, step) if chosen(capture.batch)
                              else slice(0))
        return part(lambda batch: batch not in others), part(lambda batch: batch in others)

    def thin(self, most: int) -> tuple[Rows, Rows]:
        """Twice about ``most`` positions over all processes, evenly from every call.

        All of them twice, when there are too few to tell apart.
        """
        held = sum(capture.held_out.numel() for capture in self.captures)
        step = max(1, self.team.total(held) // (2 * most))

        # Turn about, and from the next batch the other way round, which does not depend on what
        # else this process holds; calls may have a position each.
        def turn(first: int) -> Rows:
            return self._join(lambda capture: slice((capture.batch + first) % 2 * step, None,
                                                    2 * step))
        halves = turn(0), turn(1)
        counts = self.team.gather(tuple(half.x.shape[-1] for half in halves))
        if not all(map(sum, zip(*counts))):
            everything = self._join(lambda capture: slice(None))
            return everything, everything
        return halves

    def _join(self, choose: Callable[[CallCapture], Tensor | slice]) -> Rows:
        if not self.captures:  # none of this process's images reaches the layer
            groups, outputs, inputs = self.weight.shape
            return Rows(self.weight.new_empty(groups, inputs, 0),
                        self.weight.new_empty(groups, outputs, 0))
        x, y = [], []
        for capture, target in zip(self.captures, self.targets):
            chosen = choose(capture)
            x.append(_columns(capture.patches, chosen))
            y.append(_columns(target, chosen))
        calls = tuple((capture.batch, part.shape[-1]) for capture, part in zip(self.captures, y))
        return Rows(torch.cat(x, -1), torch.cat(y, -1), calls)


def check_seen(name: str, targets: Sequence[Tensor], team: Team) -> None:
    """Raises ``ValueError`` for a layer that no image gives a position.

    Args:
        name: Of the layer.
        targets: (G, M, K) of its calls, this process's.
        team: Who has the others.
    """
    if not team.total(sum(target.shape[-1] for target in targets)):
        raise ValueError(f"Layer '{name}' saw no input position on any calibration image "
                         '(no detections?); use other images, or leave it in float with '
                         f"overrides=[dict(match='{name}', skip=True)].")


def _chosen(mask: Tensor) -> Tensor | slice:
    """Indices, or a slice where all or none are meant: whole images are held out, and slices copy
    nothing."""
    if mask.all():
        return slice(None)
    return mask.nonzero()[:, 0] if mask.any() else slice(0)


def _columns(values: Tensor, chosen: Tensor | slice) -> Tensor:
    """Positions of (G, N, K) values, in the order that they are named."""
    if isinstance(chosen, slice):
        return values[..., chosen]
    # Of a matrix; in three dimensions it takes six times as long.
    rows = values.flatten(0, 1).index_select(1, chosen.to(values.device))
    return rows.view(*values.shape[:2], -1)
