"""How far raw outputs of the quantized model are from the float model's, with gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs
from mmbitsplit.solving.model_loss import MOST_ELEMENTS, usual_kind

Key = tuple[str, int]  # name of a last layer, number of its call


@dataclass
class OutputLoss:
    """A loss of each batch against what the float model gave on it.

    ``'kl'``: divergence of class probabilities, summed over rows. ``'raw'``: squared change of
    each output relative to the variance of the float model's, mean over calls of a layer and over
    layers. Both are divided by what a batch has of them on average, so that the loss of several
    batches is the mean of theirs. Of a large output, elements drawn once for all are looked at.

    Args:
        raw: What runs the model.
        asked: ``'kl'``, ``'raw'``, or ``'auto'``: the former where one linear layer gives
            (rows, classes).
        seed: Of the calibration; chooses elements.
        asked_by: Part of the request, for error messages.

    Attributes:
        kind: What was taken, once ``settle`` has been called.
        wanted: By batch, of each output name, shape and the elements looked at.
    """

    raw: RawOutputs
    asked: str
    seed: int
    asked_by: str = 'quantization.tuning'
    kind: str = ''
    wanted: dict[int, list[tuple[str, torch.Size, Tensor]]] = field(default_factory=dict)
    _shares: dict[Key, float] = field(default_factory=dict)
    _by_call: bool = True

    def __post_init__(self) -> None:
        modules = list(self.raw.modules.values())
        self._scores = self.asked != 'raw' and usual_kind(modules) == 'cross_entropy'

    def add(self, batch: int, outputs: Sequence[RawOutput]) -> None:
        """Keeps what the float model gave on a batch."""
        self.wanted[batch] = [(name, output.shape, self._some(output, batch, place).clone())
                              for place, (name, output) in enumerate(outputs)]

    def settle(self) -> None:
        """Every batch has been added: chooses the kind, and what outputs are divided by.

        Raises:
            ValueError: ``'kl'`` is asked for, and the model does not end in one linear layer.
        """
        team = self.raw.forwards.team
        scores = self._scores and all(team.gather(all(
            len(shape) == 2 for outputs in self.wanted.values() for _, shape, _ in outputs)))
        if self.asked == 'kl' and not scores:
            raise ValueError(f"{self.asked_by}: loss='kl' is for a model that ends in one "
                             'linear layer of class scores, (rows, classes); this one ends in '
                             f"{', '.join(self.raw.modules)}. Use loss='raw' or 'auto'.")
        self.kind = 'kl' if scores else 'raw'
        counted: dict[int, list[tuple[str, tuple[float, float, float]]]] = {
            batch: [(name, _moments(values)) for name, _, values in outputs]
            for batch, outputs in self.wanted.items()}
        everywhere: dict[int, list[tuple[str, tuple[float, float, float]]]] = {}
        for part in team.gather(counted):
            everywhere |= part
        # Calls of a layer are told apart where all batches have as many: levels of a pyramid.
        self._by_call = len({tuple(name for name, _ in calls)
                             for calls in everywhere.values()}) == 1
        self._settle_shares(everywhere)

    def _settle_shares(self, everywhere: Mapping[int, Sequence[tuple[str, tuple]]]) -> None:
        sums: dict[Key, Tensor] = {}
        for _, calls in sorted(everywhere.items()):
            for key, (_, moments) in zip(self._keys([name for name, _ in calls]), calls):
                sums[key] = sums.get(key, 0) + torch.tensor(moments, dtype=torch.float64)
        layers = [name for name, _ in sums]
        for (name, call), total in sums.items():
            count, mean = float(total[0]), float(total[1] / total[0].clamp(min=1))
            variance = float(total[2]) / max(count, 1.0) - mean ** 2
            scale = 1.0 if self.kind == 'kl' or not variance > 0 else variance
            per_batch = count / len(everywhere) or 1.0
            self._shares[name, call] = 1.0 / (
                len(set(layers)) * layers.count(name) * per_batch * scale)

    def __call__(self, batch: int, outputs: Sequence[RawOutput]) -> Tensor:
        """The loss of a batch, float64.

        Raises:
            ValueError: Outputs are of other shapes than the float model's.
        """
        wanted = self.wanted[batch]
        if [(name, shape) for name, shape, _ in wanted] != [
                (name, output.shape) for name, output in outputs]:
            raise ValueError(
                f'{self.asked_by}: on calibration batch {batch} the quantized model gives raw '
                'outputs of other shapes than the float one: a step picks rows by values of '
                'layers. Name it as a replay point (docs/own_detector.md), or leave '
                f'{self.asked_by} out.')
        total = torch.zeros((), dtype=torch.float64)
        keys = self._keys([name for name, _, _ in wanted])
        for place, (key, (_, _, target), (_, output)) in enumerate(zip(keys, wanted, outputs)):
            if target.numel():
                output = self._some(output, batch, place).double()
                total = total + self._shares[key] * self._distance(target.double(), output).cpu()
        return total

    def _distance(self, wanted: Tensor, output: Tensor) -> Tensor:
        if self.kind == 'raw':
            return (output - wanted).square().sum()
        wanted = wanted.log_softmax(-1)
        # As many rows as divided by: a share is that of an element.
        return wanted.shape[-1] * (wanted.exp() * (wanted - output.log_softmax(-1))).sum()

    def _keys(self, names: Sequence[str]) -> list[Key]:
        calls: dict[str, int] = {}
        found = []
        for name in names:
            calls[name] = calls.get(name, -1) + 1
            found.append((name, calls[name] if self._by_call else 0))
        return found

    def _some(self, output: Tensor, batch: int, place: int) -> Tensor:
        """An output as it is where it is small, or class scores; else some of its elements."""
        if output.numel() <= MOST_ELEMENTS or (self._scores and output.dim() == 2):
            return output
        generator = torch.Generator().manual_seed(
            ((self.seed * 1_000_003 + batch) * 1_009 + place) % (1 << 63))
        places = torch.randint(output.numel(), (MOST_ELEMENTS,), generator=generator)
        return output.flatten().index_select(0, places.to(output.device))


def _moments(values: Tensor) -> tuple[float, float, float]:
    values = values.double()
    return float(values.numel()), float(values.sum()), float(values.square().sum())
