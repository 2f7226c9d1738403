"""A pass through the solved model in which layers change one after another, by what they give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmbitsplit.functional.norm_statistics import output_moments
from mmbitsplit.models import PreparedModel, QuantizedLayer
from mmbitsplit.passes.capture import ordinary
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.lockstep import Lockstep
from mmbitsplit.passes.repeated_calls import Owner
from mmbitsplit.passes.replay import Tape


class _Moments:
    """Takes from a call the sums of what the layer gives before that is rounded."""

    def capture(self, name: str, layer: QuantizedLayer, call: int, batch: int, x: Tensor) -> Tensor:
        return output_moments(layer.product(ordinary(x, layer)), layer.geometry)


class MomentsPass(Lockstep):
    """All batches wait at a layer, the layer is settled, and they go on with what it gives then.

    So each layer is settled on all batches at once, after those before it, in one forward a batch.

    Args:
        prepared: The model, every layer solved.
        forwards: Of it.
        counts, owners, tape: As for ``Lockstep``.
        names: Layers to settle; the others are passed as they are.
        settle: Given a layer's name and the sums (3, out_channels) over all batches of all
            processes, in the same order in each.
    """

    def __init__(self, prepared: PreparedModel, forwards: Forwards,
                 counts: Mapping[int, dict[str, int]], owners: dict[str, Owner], tape: Tape,
                 names: Sequence[str], settle: Callable[[str, Tensor], None]):
        super().__init__(prepared, forwards, counts, owners, _Moments(), tape, self._add_up)
        self.open, self.settle = set(names), settle

    def _stations(self) -> list[str]:
        return [name for name in self.prepared.layers if name in self.open]

    def _passed(self, station: str) -> bool:
        return station not in self.open

    def _add_up(self, name: str, offers: Mapping[int, Sequence[Any]]) -> None:
        mine = {batch: sum(calls[1:], calls[0]) for batch, calls in offers.items()}
        by_batch = {batch: moments for part in self.team.gather(mine)
                    for batch, moments in part.items()}
        # In the order of batches: the same sum for any number of processes.
        first, *others = (by_batch[batch] for batch in sorted(by_batch))
        self.settle(name, sum(others, first))
        self.open.discard(name)
