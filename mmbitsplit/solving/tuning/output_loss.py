"""How far raw outputs of the quantized model are from the float model's, with gradients."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.functional.probe_vectors import confidence, place_of
from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs
from mmbitsplit.solving.model_loss import MOST_ELEMENTS, usual_kind

Key = tuple[str, int]  # name of a last layer, number of its call


@dataclass(frozen=True)
class Wanted:
    """What a last layer of the float model gave in one call.

    Args:
        name: Of the layer.
        shape: Of its whole output.
        values: Elements that are looked at.
        sure: How sure the head is at each place, one channel; ``None`` where that is not asked.
    """

    name: str
    shape: torch.Size
    values: Tensor
    sure: Tensor | None = None


@dataclass
class OutputLoss:
    """A loss of each batch against what the float model gave on it.

    ``'kl'``: divergence of class probabilities, summed over rows. ``'raw'``: squared change of
    each output relative to the variance of the float model's, mean over calls of a layer and over
    layers. ``'confidence'``: the same, each place of a dense head (several maps of one size)
    weighted by how sure the float model or the quantized one is there, whichever is surer: nearly
    all places of a detector are background, where nothing hangs on the scores, unless the
    quantized model sees an object. All are divided by what a batch has of them on average, so
    that the loss of several batches is the mean of theirs. Of a large output, elements drawn once
    for all are looked at.

    Args:
        raw: What runs the model.
        asked: ``'kl'``, ``'raw'``, ``'confidence'`` or ``'auto'``: the first where one linear
            layer gives (rows, classes), the third where there is a dense head, else the second.
        seed: Of the calibration; chooses elements.
        asked_by: Part of the request, for error messages.

    Attributes:
        kind: What was taken, once ``settle`` has been called.
        of_scores: Whether the model ends in one linear layer of class scores, and these are asked
            for.
        wanted: By batch.
    """

    raw: RawOutputs
    asked: str
    seed: int
    asked_by: str = 'quantization.tuning'
    kind: str = ''
    wanted: dict[int, list[Wanted]] = field(default_factory=dict)
    _shares: dict[Key, float] = field(default_factory=dict)
    _by_call: bool = True

    def __post_init__(self) -> None:
        modules = list(self.raw.modules.values())
        self.of_scores = self.asked in ('kl', 'auto') and usual_kind(modules) == 'cross_entropy'
        self._weighted = self.asked in ('confidence', 'auto') and len(modules) > 1

    @property
    def classes(self) -> int:
        """Numbers of a row that the loss sums over, 1 where it is a mean over elements."""
        team = self.raw.forwards.team
        widths = [one.shape[-1] for outputs in self.wanted.values() for one in outputs]
        return max(team.gather(max(widths, default=1))) if self.kind == 'kl' else 1

    def add(self, batch: int, outputs: Sequence[RawOutput]) -> None:
        """Keeps what the float model gave on a batch."""
        sure = _sure([output for _, output in outputs]) if self._weighted else [None] * len(outputs)
        self.wanted[batch] = [
            Wanted(name, output.shape, self._some(output, batch, place).clone(), sure[place])
            for place, (name, output) in enumerate(outputs)]

    def settle(self) -> None:
        """Every batch has been added: chooses the kind, and what outputs are divided by.

        Raises:
            ValueError: ``'kl'`` is asked for, and the model does not end in one linear layer.
        """
        team = self.raw.forwards.team
        outputs = [one for wanted in self.wanted.values() for one in wanted]
        scores = self.of_scores and all(team.gather(all(len(one.shape) == 2 for one in outputs)))
        if self.asked == 'kl' and not scores:
            raise ValueError(f"{self.asked_by}: loss='kl' is for a model that ends in one "
                             'linear layer of class scores, (rows, classes); this one ends in '
                             f"{', '.join(self.raw.modules)}. Use loss='raw' or 'auto'.")
        self._weighted = any(team.gather(any(one.sure is not None for one in outputs)))
        if self.asked == 'confidence' and not self._weighted:
            raise ValueError(f"{self.asked_by}: loss='confidence' is for a dense head, several "
                             'last layers that give maps of one size; this model ends in '
                             f"{', '.join(self.raw.modules)}. Use loss='raw' or 'auto'.")
        self.kind = 'kl' if scores else 'confidence' if self._weighted else 'raw'
        counted = {batch: [(one.name, _moments(one)) for one in wanted]
                   for batch, wanted in self.wanted.items()}
        everywhere: dict[int, list[tuple[str, tuple[float, ...]]]] = {}
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
            per_batch = float(total[3]) / len(everywhere) or 1.0
            self._shares[name, call] = 1.0 / (
                len(set(layers)) * layers.count(name) * per_batch * scale)

    def __call__(self, batch: int, outputs: Sequence[RawOutput]) -> Tensor:
        """The loss of a batch, float64.

        Raises:
            ValueError: Outputs are of other shapes than the float model's.
        """
        wanted, given = self.wanted[batch], [output for _, output in outputs]
        if [(one.name, one.shape) for one in wanted] != [
                (name, output.shape) for name, output in outputs]:
            raise ValueError(
                f'{self.asked_by}: on calibration batch {batch} the quantized model gives raw '
                'outputs of other shapes than the float one: a step picks rows by values of '
                'layers. Name it as a replay point (docs/own_detector.md), or leave '
                f'{self.asked_by} out.')
        weights = self._weights(batch, given)
        total = torch.zeros((), dtype=torch.float64)
        for place, (key, one, output, weight) in enumerate(
                zip(self._keys([one.name for one in wanted]), wanted, given, weights)):
            if one.values.numel():
                output = self._some(output, batch, place).double()
                total = total + self._shares[key] * self._distance(
                    one.values.double(), output, weight).cpu()
        return total

    def _weights(self, batch: int, outputs: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """By output, what the elements looked at count."""
        if not self._weighted:
            return [1.0] * len(outputs)
        return [1.0 if sure is None else self._some(
                    torch.maximum(one.sure, sure).expand(output.shape), batch, place)
                for place, (one, sure, output) in enumerate(
                    zip(self.wanted[batch], _sure(outputs), outputs))]

    def _distance(self, wanted: Tensor, output: Tensor, weight: Tensor | float) -> Tensor:
        if self.kind != 'kl':
            return (weight * (output - wanted).square()).sum()
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
        if output.numel() <= MOST_ELEMENTS or (self.of_scores and output.dim() == 2):
            return output
        generator = torch.Generator().manual_seed(
            ((self.seed * 1_000_003 + batch) * 1_009 + place) % (1 << 63))
        places = torch.randint(output.numel(), (MOST_ELEMENTS,), generator=generator)
        return output.flatten().index_select(0, places.to(output.device))


def _sure(outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """By output, how sure a dense head is at each place, without gradients; else ``None``."""
    maps = [output.detach() for output in outputs if output.dim() == 4]
    alike = Counter(map(place_of, maps))
    by_place = confidence(maps)
    return [by_place[place_of(output)] if output.dim() == 4 and alike[place_of(output)] > 1
            else None for output in outputs]


def _moments(one: Wanted) -> tuple[float, ...]:
    """Number of elements, sums of them and of their squares, and what they count together."""
    values, count = one.values.double(), float(one.values.numel())
    weight = float(one.sure.double().mean()) if one.sure is not None and count else 1.0
    return count, float(values.sum()), float(values.square().sum()), count * weight
