"""The quantized model as a tuning stage moves it: see ``methods.tuning.TuningProblem``."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.models.surgery.embedding import QuantizedEmbedding
from mmbitsplit.passes.call_counts import CallCounts
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import ReplayPoint, patched
from mmbitsplit.passes.sampling import unseen_batches
from mmbitsplit.solving.tuning.inner_loss import InnerLoss, mean_of
from mmbitsplit.solving.tuning.learned_values import LearnedValues, output_spreads, spread
from mmbitsplit.solving.tuning.output_loss import OutputLoss
from mmbitsplit.structures import CalibrationSpec

SPREAD_BATCHES = 8  # that the spread of outputs is taken from


@dataclass
class TunedModel:
    """A model that is moved, and its loss; every process of a team has the same numbers.

    Args:
        raw: Runs the model on this process's batches.
        values: What moves.
        output_loss: With the float model's outputs.
        fit: Numbers of the batches to learn from, of all processes.
        held_out: Of those to judge on.
        seed: Of this stage.
        images: How many images are in a batch.
        mirrored: Whether ``fit`` names each batch twice, once seen in a mirror.
        inner: What inner layers read is compared by, times ``inner_weight``.
        inner_weight: 0 for outputs alone.
        progress: Told (steps done, steps in all).

    Attributes:
        reached: Layers that gradients of this process's batches have reached.
    """

    raw: RawOutputs
    values: LearnedValues
    output_loss: OutputLoss
    fit: Sequence[int]
    held_out: Sequence[int]
    seed: int
    images: int
    mirrored: bool
    inner: InnerLoss
    inner_weight: float = 0.0
    progress: Callable[[int, int], None] = lambda step, steps: None
    reached: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Length of a point."""
        return self.values.size

    @property
    def classes(self) -> int:
        """See ``TuningProblem``."""
        return self.output_loss.classes

    def move_to(self, point: Tensor) -> None:
        """See ``TuningProblem``."""
        self.values.write(point)

    def generator(self, step: int) -> torch.Generator:
        """See ``TuningProblem``."""
        return torch.Generator().manual_seed((self.seed << 32) + step)

    def loss(self, batches: Sequence[int]) -> float:
        """See ``TuningProblem``."""
        return mean_loss(self.raw.forwards, batches, self._loss)

    def gradient(self, batches: Sequence[int]) -> tuple[float, Tensor]:
        """See ``TuningProblem``; one batch's graph at a time, added in the order of batches."""
        found = torch.zeros(len(batches), 1 + self.size, dtype=torch.float64)
        for place, batch in _own(self.raw.forwards, batches):
            with self.values.recorded() as leaves:
                loss = self._loss(batch, leaves)
                if not loss.requires_grad:
                    raise ValueError(
                        'quantization.tuning: no gradient reaches the raw outputs of '
                        f"{', '.join(self.raw.modules)}: the model or its run function detaches "
                        'them or is in inference mode. Leave quantization.tuning out, or run the '
                        'model otherwise.')
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            self.reached |= self.values.reached(gradients)
            found[place, 0] = float(loss.detach())
            found[place, 1:] = self.values.gradient(gradients)
        # A row is of one process and zero elsewhere: the sum over processes is exact.
        self.raw.forwards.team.add_(found)
        total = _mean(found)
        return float(total[0]), total[1:]

    def _loss(self, batch: int, learned: Sequence[Tensor] | None = None) -> Tensor:
        count = len(self.output_loss.wanted[batch])
        if not self.inner_weight:
            outputs, terms = self.raw.replay(batch, count, learned), []
        else:
            # Run again in each step, as what all layers read of all batches is too much to keep.
            with as_float(self.inner.layers, self.raw.forwards.model), self.inner.recording():
                self.raw.replay(batch, count)
            with self.inner.comparing() as terms:
                outputs = self.raw.replay(batch, count, learned)
        with torch.set_grad_enabled(learned is not None):
            return self.output_loss(batch, outputs) + self.inner_weight * mean_of(terms)


def mean_loss(forwards: Forwards, batches: Sequence[int], loss: Callable[[int], Tensor]) -> float:
    """Mean over batches of all processes of a loss of this process's batches."""
    found = torch.zeros(len(batches), dtype=torch.float64)
    for place, batch in _own(forwards, batches):
        found[place] = float(loss(batch))
    forwards.team.add_(found)
    return _mean(found).item()


def _own(forwards: Forwards, batches: Sequence[int]) -> list[tuple[int, int]]:
    """(place, number) of those batches that are this process's."""
    return [(place, batch) for place, batch in enumerate(batches) if batch in forwards.batches]


def record_float(raw: RawOutputs, layers: Mapping[str, QuantizedLayer], loss: OutputLoss,
                 measured: Collection[int] | None = None, calls: CallCounts | None = None,
                 ) -> dict[str, Tensor]:
    """Runs the float model on all batches: fills the tape and the loss.

    Args:
        raw: Runs the model, whose layers are quantized.
        layers: These; they answer in float meanwhile.
        loss: Given the raw outputs.
        measured: Batches, of all processes, whose outputs of layers are summed up; a few when not
            given.
        calls: Counts calls of layers.

    Returns:
        (3, out_channels) sums of each layer's outputs, see ``output_moments``; none of a layer that
        was not called.
    """
    team = raw.forwards.team
    first = range(min(SPREAD_BATCHES, raw.forwards.total)) if measured is None else measured
    sums: dict[int, dict[str, Tensor]] = {}
    with as_float(layers, raw.forwards.model):
        for batch in raw.forwards.batches:
            with output_spreads(layers if batch in first else {}) as found, nullcontext() \
                    if calls is None else calls.of(batch, raw.forwards.model, layers):
                loss.add(batch, raw.record(batch))
            sums[batch] = found
    loss.settle()
    total: dict[str, Tensor] = {}
    by_batch = {batch: found for part in team.gather(
        {batch: sums[batch] for batch in first if batch in sums}) for batch, found in part.items()}
    for _, found in sorted(by_batch.items()):
        for name, value in found.items():
            total[name] = total.get(name, 0) + value
    return total


def spreads_of(layers: Mapping[str, QuantizedLayer], moments: Mapping[str, Tensor],
               ) -> dict[str, Tensor]:
    """(out_channels,) that biases of each layer are counted in; ones where nothing is known."""
    return {name: spread(moments[name]) if name in moments
            else torch.ones(layer.geometry.out_channels, dtype=torch.float64)
            for name, layer in layers.items()}


def split_batches(total: int, calibration: CalibrationSpec, holdout: float,
                  ) -> tuple[list[int], list[int], bool]:
    """Chooses which batches are learned from and which are judged on.

    Layers are fitted to the very roundings of the layers before them, on the images that they were
    solved on: there the model is better than elsewhere, and any change of it seems to be for the
    worse. So it is judged on batches that no layer was solved on, where there are such.

    Args:
        total: Batches of all processes.
        calibration: Seed, and the part that no layer was solved on.
        holdout: Part to judge on where no whole batch is kept from the layers.

    Returns:
        Both, and whether the latter are new to the layers.

    Raises:
        ValueError: There is only one batch.
    """
    if total < 2:
        raise ValueError('quantization.tuning holds calibration batches out to judge on, and there '
                         f'is {total} in all. Set quantization.calibration.batch_size lower or '
                         'num_images higher, or leave quantization.tuning out.')
    chosen = unseen_batches(total, calibration.holdout)
    if not chosen:
        count = min(total - 1, max(1, round(holdout * total)))
        generator = torch.Generator().manual_seed(calibration.seed)
        return (*_parted(total, torch.randperm(total, generator=generator)[:count].tolist()), False)
    return (*_parted(total, chosen), True)


def _parted(total: int, held_out: Sequence[int]) -> tuple[list[int], list[int]]:
    return sorted(set(range(total)) - set(held_out)), sorted(held_out)


@contextmanager
def as_float(layers: Mapping[str, QuantizedLayer], model: nn.Module) -> Iterator[None]:
    """Inside, layers and embeddings of a model answer as in the float model."""
    def of(forward: Callable) -> Callable:
        layer = forward.__self__
        return lambda input, *args, **kwargs: layer.float_forward(input)

    points = [ReplayPoint(layer, 'forward') for layer in layers.values()]
    with ExitStack() as stack:
        stack.enter_context(patched(points, of))
        stack.enter_context(streams_through())
        for table in model.modules():
            if isinstance(table, QuantizedEmbedding):
                stack.enter_context(table.in_float())
        yield


def _mean(rows: Tensor) -> Tensor:
    """Mean of rows, added one after the other: the same for any number of processes."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)
