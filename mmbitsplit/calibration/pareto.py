"""Finds the plans of a model with several widths that are worth having; nothing is calibrated.

The sensitivity of each block at each width is measured, the integer program takes the least sum
within each budget, and an evolutionary search the least loss of the whole plan.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from torch import nn

from mmbitsplit.calibration.known_losses import KnownLosses
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models import quantized_layers
from mmbitsplit.models.switching import bits_of, set_plan, widths_of
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.quantized_flow import quantized_flow
from mmbitsplit.passes.raw_outputs import RawOutputs
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.thread_state import in_a_state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.planning.allocation import check_budgets, possible
from mmbitsplit.planning.block_costs import block_costs
from mmbitsplit.planning.block_losses import BlockLosses
from mmbitsplit.planning.front_search import FrontSearch, Search
from mmbitsplit.planning.genetic_search import GeneticOptions
from mmbitsplit.planning.plan_search import PlanProblem
from mmbitsplit.planning.width_blocks import (
    Granularity,
    Pairs,
    WidthBlock,
    common_choices,
    find_blocks,
    plan_of_sides,
)
from mmbitsplit.planning.width_losses import SHARED_BYTES
from mmbitsplit.solving.tuning import OutputLoss
from mmbitsplit.structures import Range, WidthTable
from mmbitsplit.structures.options import Options
from mmbitsplit.structures.plan_front import PlanFront

Limits = Mapping[str, float]
USUAL = (3.0, 3.5, 4.0, 5.0, 6.0)  # mean bits of a weight, where no budgets are given
SENSITIVITY, EVOLUTION = 'front, blocks', 'front, search'  # stages


@dataclass(frozen=True, kw_only=True)
class FrontOptions(Options):
    """What is searched, and how.

    Args:
        budgets: By name, most of some costs: ``{'4': {'weight_bits': 4.0}}``. Where none is
            given, means of 3, 3.5, 4, 5 and 6 bits as far as they are possible.
        search: ``'program'``: the integer program, on sums of the blocks' losses. ``'genetic'``:
            the evolutionary search alone, from plans drawn at random, as in the source.
            ``'both'``: it begins at the program's plan and at uniform ones, too.
        evaluations: Most plans that the evolutionary search measures a budget; ``None`` for all
            1050 of the source's.
        granularity, pairs: See ``find_blocks``.
        loss: See ``OutputLoss``.
        seed: Of the search, and of the elements that the loss looks at.
        genetic: Options of the evolutionary search; its seed is the one above.
    """

    budgets: Mapping[str, Limits] = field(default_factory=dict)
    search: Search = 'both'
    evaluations: Annotated[int, Range(1)] | None = 200
    granularity: Granularity = 'block'
    pairs: Pairs = 'tied'
    loss: Literal['auto', 'kl', 'raw', 'confidence'] = 'auto'
    seed: int = 0
    genetic: GeneticOptions = GeneticOptions()


def find_front(given: Given, options: FrontOptions, *, reference: Given | None = None,
               known: KnownLosses | None = None,
               progress: Callable[[Progress], None] = lambda step: None) -> PlanFront:
    """Measures blocks, and searches plans within budgets.

    Args:
        given: A quantized model with several widths, and batches; of one process.
        options: What is searched.
        reference: Another model to compare with, such as the float one, its layers named alike,
            on the same batches. When not given, the model with all blocks at their widest.
        known: Losses of an earlier run.
        progress: Told every plan.

    Returns:
        The plans; the widths in use are as before.

    Raises:
        ValueError: The model has one width, a budget cannot be kept, or the loss is none of this
            model.

    Source: Xu et al., *PTMQ: Post-training Multi-Bit Quantization of Neural Networks*
        (AAAI 2024), Eq. 8 and 9. Differs from source: losses may be against the widest model,
        and whole plans are measured beside sums.
    """
    with uncompiled(given.model), _widths_put_back(given.model):
        return _find(as_written(given.model), given, options, reference, known, progress,
                     run=given.run)


@full_float32()
@in_a_state_of_its_own
def _find(model: nn.Module, given: Given, options: FrontOptions, reference: Given | None,
          known: KnownLosses | None, progress: Callable[[Progress], None], *,
          run: Callable[[nn.Module, Any], Any]) -> PlanFront:
    widths, layers = widths_of(model), dict(quantized_layers(model))
    forwards = Forwards.of(model.eval(), given.batches, run, seed=options.seed, **given.options)
    flow = quantized_flow(forwards, layers)
    blocks = find_blocks(flow, widths, granularity=options.granularity, pairs=options.pairs)
    costs = block_costs(model, layers, flow, widths, blocks)
    budgets = _budgets(options, blocks, costs)
    tape = Tape()
    raw = RawOutputs.of(forwards, flow, tape)
    losses = BlockLosses(model, blocks, widths, raw, OutputLoss(
        raw, options.loss, options.seed, 'pareto'), SHARED_BYTES)
    if known is not None:
        losses.known, losses.keep = known.losses, known.keep
    losses.record(None if reference is None else _of_reference(reference, raw, options.seed))
    table = losses.table(lambda done, total: progress(Progress(
        SENSITIVITY, done, total, seconds_left=_left(losses, total - done))))
    problem = PlanProblem(table, losses.of(losses.widest), costs, common_choices(blocks))
    search = FrontSearch(problem, losses, options.search, replace(
        options.genetic, seed=options.seed), options.evaluations)
    search.tell = _Counter(search, losses, len(budgets), progress)
    uniform = search.uniform()
    plans = [plan for name, limits in budgets.items() for plan in search.within(name, limits)]
    if known is not None:
        known.write()
    return PlanFront(
        loss=losses.loss.kind, against='widest' if reference is None else 'reference',
        base=problem.base, blocks={block.name: block.places for block in blocks}, table=table,
        costs=costs, program=search.line(next(iter(next(iter(budgets.values()))))),
        plans=[*plans, *uniform], looked_at=search.looked_at(), measured=losses.measured,
        seconds=losses.seconds)


def _budgets(options: FrontOptions, blocks: Sequence[WidthBlock],
             costs: Mapping[str, WidthTable]) -> dict[str, Limits]:
    """Those asked for, refused where no plan keeps them, or usual ones."""
    choices = {block.name: block.choices for block in blocks}
    if options.budgets:
        check_budgets(choices, costs, options.budgets.values())
        return dict(options.budgets)
    least, greatest = possible(WidthTable({name: dict.fromkeys(row, 0.0)
                                           for name, row in choices.items()}), costs['weight_bits'])
    # Where only activations have several widths, every plan has the same bits of a weight.
    found = [bits for bits in USUAL if least <= bits < greatest] or [greatest]
    return {f'{bits:g}': {'weight_bits': bits} for bits in found}


def _of_reference(reference: Given, raw: RawOutputs, seed: int) -> RawOutputs:
    """Runs another model for what its layers give that have the names of the last ones."""
    names = dict(reference.model.named_modules())
    for name in raw.modules:
        if name not in names:
            raise ValueError(f"reference: the model has no layer '{name}', whose outputs are "
                             'compared; give the float model that was quantized.')
    forwards = Forwards.of(reference.model.eval(), reference.batches, reference.run, seed=seed,
                           **reference.options)
    return RawOutputs(forwards, {name: names[name] for name in raw.modules}, raw.tape)


def _left(losses: BlockLosses, plans: int) -> float | None:
    """Seconds that measuring some more plans takes."""
    return plans * losses.seconds / losses.measured if losses.measured else None


class _Counter:
    """Counts the plans of evolutionary searches."""

    def __init__(self, search: FrontSearch, losses: BlockLosses, budgets: int,
                 progress: Callable[[Progress], None]):
        self.losses, self.progress = losses, progress
        self.done, self.total = 0, budgets * search.most

    def __call__(self) -> None:
        self.done += 1
        self.progress(Progress(EVOLUTION, self.done, self.total,
                               seconds_left=_left(self.losses, self.total - self.done)))


@contextmanager
def _widths_put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the widths in use that it had."""
    before = plan_of_sides({name: {side: bits for side, bits in vars(own).items()
                                   if bits is not None} for name, own in bits_of(model).items()})
    try:
        yield
    finally:
        set_plan(model, before)
