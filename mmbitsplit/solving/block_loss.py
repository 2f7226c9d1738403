"""Divergence of what blocks give from what they give in the float model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.functional.patches import output_channel_dim
from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs
from mmbitsplit.solving.model_loss import MOST_ELEMENTS
from mmbitsplit.structures import LayerGeometry


@dataclass
class BlockLoss:
    """Kullback-Leibler divergence over channels at each place of each unit's output.

    Channels count as scores of classes, as in the source: their softmax is compared. The mean over
    places, then over units. Used as ``solving.tuning.OutputLoss``.

    Source: Xu et al., *PTMQ*, AAAI 2024, Eq. 8: the divergence of the output with one block alone
    at a width. For class scores of the model that is ``loss='kl'``. Differs from source: the
    outputs of all units are compared, so that models without class scores have such a loss, and the
    loss of a whole plan is a number of the same kind. With one layer changed, units before it add
    nothing; those behind it count, so that an error which they carry on costs more than one that
    dies out. How many units the mean is over is the same for all layers, and changes no plan.

    Args:
        raw: Gives what the units' last modules give, under the units' names.
        geometries: By unit, of its last layer.

    Attributes:
        wanted: By batch, of each output the float model's logarithms of probabilities (places,
            channels), at evenly spread places of large ones.
    """

    raw: RawOutputs
    geometries: Mapping[str, LayerGeometry]
    kind: str = 'block_kl'
    wanted: dict[int, list[Tensor]] = field(default_factory=dict)
    _names: dict[int, list[str]] = field(default_factory=dict)
    _shares: dict[str, float] = field(default_factory=dict)

    def add(self, batch: int, outputs: Sequence[RawOutput]) -> None:
        """Keeps what the float model gave on a batch."""
        self._names[batch] = [name for name, _ in outputs]
        self.wanted[batch] = [self._scores(name, output) for name, output in outputs]

    def settle(self) -> None:
        """Every batch has been added: finds what divergences are divided by."""
        counts: dict[str, int] = {}
        batches = 0
        for part in self.raw.forwards.team.gather({
                batch: [(name, len(values)) for name, values in zip(self._names[batch], found)]
                for batch, found in self.wanted.items()}):
            batches += len(part)
            for rows in part.values():
                for name, places in rows:
                    counts[name] = counts.get(name, 0) + places
        self._shares = {name: batches / (len(counts) * max(1, count))
                        for name, count in counts.items()}

    def __call__(self, batch: int, outputs: Sequence[RawOutput]) -> Tensor:
        """The loss of a batch, float64.

        Raises:
            ValueError: Blocks give other shapes than in the float model.
        """
        total = torch.zeros((), dtype=torch.float64)
        for name, wanted, (found, output) in zip(self._names[batch], self.wanted[batch], outputs,
                                                 strict=True):
            scores = self._scores(name, output)
            if found != name or scores.shape != wanted.shape:
                raise ValueError(
                    f"quantization.budget.loss='block_kl': on {self.raw.forwards.labels[batch]} "
                    f"unit '{name}' gives another shape than in the float model: a step picks "
                    'rows by values of layers. Name it as a replay point '
                    "(docs/own_detector.md), or use another loss.")
            total = total + self._shares[name] * (
                wanted.double().exp() * (wanted.double() - scores.double())).sum().cpu()
        return total

    def _scores(self, name: str, output: Tensor) -> Tensor:
        """Logarithms of probabilities (places, channels)."""
        dim = output_channel_dim(output.shape, self.geometries[name])
        rows = output.movedim(dim, -1).flatten(0, -2)
        rows = rows[::max(1, rows.numel() // MOST_ELEMENTS)]
        return rows.float().log_softmax(-1)
