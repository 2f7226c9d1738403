"""Looks at a float model on as many batches as it takes, and prepares it by what they showed.

The first batch is watched operation by operation. Others are watched only where they show
something new: a layer that no batch before has called, or called as often, or outputs that change
when batch norms are folded and layers quantized in place by what was known.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmbitsplit.models import DataFlow, PreparedModel, prepare, watch
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.passes.batches import batch_size
from mmbitsplit.passes.call_counts import CallCounts, Stacks, batches_to_watch
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import barrier
from mmbitsplit.passes.surgery_check import Difference, SurgeryCheck, not_repeating, refusal
from mmbitsplit.structures import BitPlan

MOST_COMPARED = 3  # batches, beside those that were watched
MOST_LOOKS = 4  # at further batches because a comparison failed


class Watching:
    """What is known of a model; the same in every process of a team.

    Args:
        forwards: Of the float model. Nothing is seen inside replay points; their results are
            taken over when comparing.
        layers: Names of the layers that the request is about.
        count: Runs all batches to see what each calls, also where the first calls all layers.

    Attributes:
        flow: What the watched batches showed together.
        watched: Their numbers.
        counts: Calls of layers by batch, of all processes; empty where all are expected to be
            like the first batch.
        patterns: The ways in which batches call them, where they were counted before any pass.
    """

    def __init__(self, forwards: Forwards, layers: Iterable[str], count: bool = False):
        self.forwards = forwards
        self.flow, self.watched = DataFlow(), []
        self.counts: dict[int, dict[str, int]] = {}
        self._flows: dict[int, tuple[DataFlow, int]] = {}
        self._checks: dict[int, SurgeryCheck] = {}
        self.layers = sorted(layers)
        self._compared = 0
        self.patterns: list[Stacks] = []
        self.watch([0])
        seen = (self.flow.calls.keys() | self.flow.read_elsewhere.keys()
                | self.flow.also_read.keys())
        if count or not set(self.layers) <= seen:
            calls = CallCounts()
            for number in forwards.batches:
                with calls.of(number, forwards.model, self.layers):
                    forwards.alone(number)
            self.patterns = calls.patterns
            self.watch(self.take_in(calls.counts))

    @property
    def sizes(self) -> dict[int, float]:
        """Sizes of this process's batches in units of the largest that was watched."""
        unit = max(size for _, size in self._flows.values())
        return {number: batch_size(batch) / unit
                for number, batch in self.forwards.batches.items()}

    def take_in(self, counts: Mapping[int, dict[str, int]]) -> list[int]:
        """Learns what batches call; returns those that call a layer more often than was seen.

        Args:
            counts: Of this process's batches, calls by layer.
        """
        self.counts = {number: calls for part in self.forwards.team.gather(dict(counts))
                       for number, calls in part.items()}
        return batches_to_watch(self.counts, self.flow.calls, self.layers)

    def watch(self, numbers: Sequence[int]) -> None:
        """Watches batches, each in the process that has it; the model is float."""
        batches = self.forwards.batches
        mine = [(number, self._flow(number), batch_size(batches[number]))
                for number in numbers if number in batches]
        for part in self.forwards.team.gather(mine):
            self._flows.update({number: (flow, size) for number, flow, size in part})
        self.watched = sorted(self._flows)
        self.flow = merge_flows([self._flows[number][0] for number in self.watched])
        self.flow.closed_calls = [*self.forwards.closed_calls]

    def prepare(self, plan: BitPlan) -> PreparedModel | None:
        """Prepares the model, and sees that it computes what the float model does.

        Args:
            plan: Made from ``flow``.

        Returns:
            ``None``, and the model as it was, where it does not and another batch has been watched
            that shows more: ``flow`` is another then, and so is the plan that it asks for.

        Raises:
            ValueError: It does not, and there is nothing more to see; names the layers. Or the
                float model differs from itself; says where.
        """
        prepared = prepare(self.forwards.model, self.flow, plan)
        prepared.put_back()
        self._keep_outputs()
        prepared.put_in(prepared.layers)
        differing = {number: found for number, kept in self._checks.items()
                     if (found := kept.compare(prepared)) is not None}
        self._compared += 1
        numbers = sorted(number for part in self.forwards.team.gather(list(differing))
                         for number in part)
        if not numbers:
            self._checks.clear()
            self._compared = 0
            return prepared
        new = [number for number in numbers if number not in self.watched]
        if new and self._compared < MOST_LOOKS:
            prepared.put_back()
            self.watch(new[:1])
            return None
        self._refuse(prepared, differing)

    def _refuse(self, prepared: PreparedModel, differing: Mapping[int, Difference]) -> NoReturn:
        message = ''
        for number, difference in list(differing.items())[:1]:
            check, label = self._checks[number], self.forwards.labels[number]
            itself = check.difference_of_itself(prepared)
            culprits = [] if itself else check.culprits(prepared)
            if culprits:
                message = refusal(culprits, prepared, difference, label)
                continue
            difference = itself or difference  # not of our making, or not there a second time
            if difference.error is not None:
                raise difference.error
            message = not_repeating(difference, label)
        raise ValueError(next(filter(None, self.forwards.team.gather(message))))

    def _flow(self, number: int) -> DataFlow:
        forwards = self.forwards
        with forwards.whole(number):
            return watch(forwards.model, lambda: forwards.run(number),
                         inputs=forwards.batches[number],
                         barriers=[barrier(forwards.replay_points)])

    def _keep_outputs(self) -> None:
        """Runs the float model on the batches that are to be compared."""
        signatures = {number: signature for part in self.forwards.team.gather(
            {number: _signature(batch) for number, batch in self.forwards.batches.items()})
            for number, signature in part.items()}
        chosen = {*batches_to_compare(signatures), *self.watched[1:]}
        calls = CallCounts()
        for number in sorted(chosen & self.forwards.batches.keys()):
            with calls.of(number, self.forwards.model, self.flow.calls.keys()):
                self._check(number)
        reached = {name for part in self.forwards.team.gather(calls.counts)
                   for counts in part.values() for name in counts}
        if not reached >= self.flow.calls.keys() and 0 in self.forwards.batches:
            self._check(0)

    def _check(self, number: int) -> None:
        if number not in self._checks:
            self._checks[number] = SurgeryCheck(self.forwards, number)


def batches_to_compare(signatures: Mapping[int, tuple[Any, Any]]) -> list[int]:
    """Chooses batches beside the first: those unlike it, else the second.

    Args:
        signatures: By number, plain values (flags, names, counts) and shapes of the batch.

    Returns:
        One with each set of plain values that the first has not, up to ``MOST_COMPARED``; where
        there is none, one whose shapes are others; the first itself where it is the only one.
    """
    numbers = sorted(signatures)
    first, *others = numbers
    known, chosen = [signatures[first][0]], []
    for number in others:
        if signatures[number][0] not in known and len(chosen) < MOST_COMPARED:
            known.append(signatures[number][0])
            chosen.append(number)
    unlike = [number for number in others if signatures[number][1] != signatures[first][1]]
    return chosen or [*unlike, *others, first][:1]


def _signature(batch: Any) -> tuple[Any, Any]:
    leaves = tree_leaves(batch)
    return (tuple(leaf for leaf in leaves if isinstance(leaf, (bool, int, str)) or leaf is None),
            tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)))
