"""The loss of plans of a model with several widths, measured on the model itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from mmbitsplit.models import quantized_layers
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.switching import LayerWidths, set_plan
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.planning.width_blocks import BlockPlan, WidthBlock, plan_of_blocks
from mmbitsplit.planning.width_losses import BaseCalls, mean
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import Widths, WidthTable


@dataclass
class BlockLosses:
    """Losses of plans, each taken once; what plans have in common is computed once.

    A plan that differs from the widest in some blocks gives the widest's outputs in every call
    before the first place of these: such calls are handed out from memory.

    Args:
        model: With several widths.
        blocks: From ``find_blocks``.
        widths: From ``widths_of``.
        raw: Runs the model.
        loss: Compares raw outputs.
        shared_bytes: For outputs of the widest model.
        known: Losses by ``plan_key``, of an earlier run; added to.
        keep: Told whenever ``known`` has grown.

    Attributes:
        seconds: Spent in measuring.
        measured: Plans that were run, not taken from ``known``.
    """

    model: nn.Module
    blocks: Sequence[WidthBlock]
    widths: Mapping[str, LayerWidths]
    raw: RawOutputs
    loss: OutputLoss
    shared_bytes: int
    known: dict[str, float] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None
    seconds: float = 0.0
    measured: int = 0

    def __post_init__(self) -> None:
        sites: dict[str, nn.Module] = {
            name: module for name, module in self.model.named_modules()
            if isinstance(module, Product)}
        self._calls = BaseCalls({**sites, **dict(quantized_layers(self.model))},
                                self.shared_bytes)
        modules = dict(self.model.named_modules())
        self._switched = [part for name in self.widths for part in modules[name].modules()]

    @property
    def widest(self) -> dict[str, Widths]:
        """The plan with all blocks at their widest."""
        return {block.name: block.choices[-1] for block in self.blocks}

    def record(self, reference: RawOutputs | None = None) -> None:
        """Takes what plans are compared with: what the widest gives, or another model.

        Args:
            reference: Runs another model, such as the float one, with the same tape.

        Raises:
            ValueError: The loss is none of this model.
        """
        self._switch(self.widest)
        for batch in self.raw.forwards.batches:
            self.loss.add(batch, (self.raw if reference is None else reference).record(batch))
        self.loss.settle()

    def of(self, plan: BlockPlan) -> float:
        """The mean loss of a plan over batches; the plan stays in use.

        Args:
            plan: Widths of all blocks.
        """
        key = plan_key(plan)
        if key not in self.known:
            began = time.perf_counter()
            self.known[key] = self._measure(plan)
            self.seconds += time.perf_counter() - began
            self.measured += 1
            self.keep()
        return self.known[key]

    def table(self, tell: Callable[[int, int], None] = lambda done, total: None) -> WidthTable:
        """What the model loses with each block alone at each choice, all others at the widest.

        Args:
            tell: Told how many of all are measured.
        """
        base, total = self.of(self.widest), sum(len(block.choices) for block in self.blocks)
        rows: dict[str, dict[Widths, float]] = {block.name: {} for block in self.blocks}
        for block in self.blocks:
            for own in block.choices:
                rows[block.name][own] = self.of({**self.widest, block.name: own}) - base
                tell(sum(map(len, rows.values())), total)
        return WidthTable(rows)

    def _measure(self, plan: BlockPlan) -> float:
        if not self._calls.order:
            self._switch(self.widest)
            for batch in self.raw.forwards.batches:
                with self._calls.recording(batch):
                    self._run(batch)
        self._switch(plan)
        changed = {name for block in self.blocks if plan[block.name] != block.choices[-1]
                   for name in block.places}
        found = []
        for batch in self.raw.forwards.batches:
            if changed <= self._calls.layers.keys() and self._calls.reaches(batch, changed):
                with self._calls.handed_out(batch, changed):
                    found.append(self._run(batch))
            else:  # a stream is no call: nothing is shared
                found.append(self._run(batch))
        return mean(found)

    def _run(self, batch: int) -> float:
        return float(self.loss(batch, self.raw.replay(batch, len(self.loss.wanted[batch]))))

    def _switch(self, plan: BlockPlan) -> None:
        set_plan(self.model, plan_of_blocks(plan, self.blocks, self.widths))
        # What forwards find from now on; else the widths would be put back after the next one.
        self.raw.forwards.state.modules.renew(self._switched)


def plan_key(plan: BlockPlan) -> str:
    """Returns a plan as text, equal for equal plans."""
    return ' '.join(f'{name}={widths}' for name, widths in sorted(plan.items()))
