"""The loss of whole plans on batches to judge on, sharing what plans have in common.

A plan that differs from the base model in some layers gives, on a batch, the same outputs as that
in every layer call before the first call of one of these. Such calls are handed out from memory
instead of computed again. A batch that calls none of them has the loss of the base model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs
from mmbitsplit.passes.replay import ReplayPoint, patched
from mmbitsplit.passes.sampling import unseen_batches
from mmbitsplit.planning.width_bank import WidthBank
from mmbitsplit.solving.block_loss import BlockLoss
from mmbitsplit.solving.label_loss import LabelLoss
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import CalibrationSpec, Widths

ENOUGH = 4  # unseen batches: with fewer the loss says more of these images than of the plan
SHARED_BYTES = 1 << 30  # of outputs of the base model, where no memory budget is given
SHARE = 0.25  # of a memory budget, for the same


def batches_to_judge(total: int, calibration: CalibrationSpec) -> tuple[list[int], bool]:
    """Chooses the batches that plans are judged on.

    Layers do a little better on what they were solved on than elsewhere, but so they do at every
    width; a few images that no layer has seen vary more. So the unseen are taken where there are
    at least ``ENOUGH`` batches of them, else all.

    Args:
        total: Batches of all processes.
        calibration: Says what part no layer is solved on.

    Returns:
        Their numbers, and whether no layer was solved on them.
    """
    unseen = unseen_batches(total, calibration.holdout)
    return (unseen, True) if len(unseen) >= ENOUGH else (list(range(total)), False)


def shared_bytes(calibration: CalibrationSpec) -> int:
    """Bytes for outputs of the base model: of the request alone, never of the machine."""
    if calibration.memory_budget is None:
        return SHARED_BYTES
    return min(SHARED_BYTES, int(SHARE * calibration.memory_budget * 1e9))


@dataclass
class BaseCalls:
    """Outputs of the layers of the base model, call by call.

    Args:
        layers: Of the prepared model; whatever gives one tensor a call.
        budget: Bytes that may be kept, of all batches of this process.

    Attributes:
        kept: By batch, name of the layer and output of each call in order; batches beyond the
            budget are not there.
        order: By batch, the layer of each call.
    """

    layers: Mapping[str, nn.Module]
    budget: int
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    order: dict[int, list[str]] = field(default_factory=dict)
    _bytes: int = 0

    @contextmanager
    def recording(self, batch: int) -> Iterator[None]:
        """Around a forward of the base model on a batch."""
        order: list[str] = []
        kept: list[Tensor] | None = []
        before = self._bytes

        def noted(name: str, output: Tensor) -> None:
            nonlocal kept
            order.append(name)
            self._bytes += output.numel() * output.element_size()
            if self._bytes > self.budget:
                kept = None
            if kept is not None:
                kept.append(output.detach().clone())  # what comes after may change it in place

        def wrap(name: str) -> Callable:
            def with_name(forward: Callable) -> Callable:
                def intercepted(*args, **kwargs) -> Tensor:
                    output = forward(*args, **kwargs)
                    noted(name, output)
                    return output
                return intercepted
            return with_name

        with self._intercepted(wrap):
            yield
        self.order[batch] = order
        if kept is None:
            self._bytes = before
        else:
            self.kept[batch] = kept

    def reaches(self, batch: int, changed: set[str]) -> bool:
        """Whether a batch calls one of some layers."""
        return not changed.isdisjoint(self.order[batch])

    @contextmanager
    def handed_out(self, batch: int, changed: set[str]) -> Iterator[None]:
        """Around a forward: calls before the first of the changed layers are not computed."""
        if batch not in self.kept:
            yield
            return
        order, kept, place = self.order[batch], self.kept[batch], 0
        first = next(index for index, name in enumerate(order) if name in changed)

        def wrap(name: str) -> Callable:
            def with_name(forward: Callable) -> Callable:
                def intercepted(*args, **kwargs) -> Tensor:
                    nonlocal place
                    if place >= first:
                        return forward(*args, **kwargs)
                    if order[place] != name:
                        raise RuntimeError(
                            f"Run again on batch {batch}, the model calls layer '{name}' where it "
                            f"called '{order[place]}' before. The loss of plans needs a forward "
                            'that repeats itself.')
                    place += 1
                    return kept[place - 1].clone()
                return intercepted
            return with_name

        with self._intercepted(wrap):
            yield

    @contextmanager
    def _intercepted(self, wrap: Callable[[str], Callable]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.enter_context(patched([ReplayPoint(layer, 'forward')], wrap(name)))
            yield


@dataclass
class PlanLosses:
    """Losses of plans by batch; every process of a team has the same numbers.

    Args:
        raw: Runs the model.
        bank: Installs plans.
        loss: Compares what the model gives with what the float model gave, or with labels.
        batches: Numbers of the batches to judge on, of all processes.
        calls: Of the base model.

    Attributes:
        forwards: Batches that this process has run, those of the float model too.
    """

    raw: RawOutputs
    bank: WidthBank
    loss: OutputLoss | LabelLoss | BlockLoss
    batches: Sequence[int]
    calls: BaseCalls
    forwards: int = 0
    _base: list[float] = field(default_factory=list)

    def record(self) -> None:
        """Runs the float model on all batches: what it gives, and what it decides.

        Raises:
            ValueError: The loss is none of this model.
        """
        self.bank.take_out()
        with streams_through():
            for _, batch in self._own():
                self.loss.add(batch, self.raw.record(batch))
                self.forwards += 1
        self.loss.settle()

    @property
    def base(self) -> list[float]:
        """Loss of the base model by batch; it is run when first asked for."""
        if not self._base:
            def run(batch: int) -> float:
                with self.calls.recording(batch):
                    return self._run(batch)
            self.bank.install({})
            self._base = self._gathered(run)
        return self._base

    def of(self, plan: Mapping[str, Widths]) -> list[float]:
        """Loss of a plan by batch; the plan stays installed.

        Args:
            plan: Widths by layer; others as in the base model.
        """
        base = dict(zip(self.batches, self.base))
        self.bank.install(plan)
        changed = {name for name, widths in self.bank.installed.items()
                   if widths != self.bank.base[name]}

        def run(batch: int) -> float:
            if not self.calls.reaches(batch, changed):
                return base[batch]
            with self.calls.handed_out(batch, changed):
                return self._run(batch)
        return self._gathered(run)

    def _run(self, batch: int) -> float:
        self.forwards += 1
        outputs: list[RawOutput] = self.raw.replay(batch, len(self.loss.wanted[batch]))
        return float(self.loss(batch, outputs))

    def _gathered(self, run: Callable[[int], float]) -> list[float]:
        found = torch.zeros(len(self.batches), dtype=torch.float64)
        for place, batch in self._own():
            found[place] = run(batch)
        # Zero but in the process that has the batch: the sum is exact.
        self.raw.forwards.team.add_(found)
        return found.tolist()

    def _own(self) -> list[tuple[int, int]]:
        return [(place, batch) for place, batch in enumerate(self.batches)
                if batch in self.raw.forwards.batches]


def mean(values: Sequence[float]) -> float:
    """Added one after the other: the same for any number of processes."""
    return sum(values) / len(values)
