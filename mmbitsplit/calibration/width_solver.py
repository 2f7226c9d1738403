"""Solves layers for several widths when the lockstep pass has their inputs at each of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.calibration.layer_solver import LayerSolver
from mmbitsplit.calibration.solved_layers import SolvedLayers
from mmbitsplit.calibration.tuning import tune
from mmbitsplit.functional.stored_widths import solution_as_stored
from mmbitsplit.methods import Method
from mmbitsplit.methods.tuning import TuningStage
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.layers.streams import stream_widths, use_stream
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.product_capture import ProductCapture
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.passes.width_lockstep import (
    Prefix,
    WidthLockstep,
    switched_streams,
    use_everywhere,
)
from mmbitsplit.solving.positions import check_seen
from mmbitsplit.solving.solve_widths import solve_widths
from mmbitsplit.structures import BitPlan, CalibrationSpec, LayerPlan, ProductPlan

# What layers give at widths from here on is so near to the float model that one stands for all.
ALIKE_BITS = 6


def pair_widths(widths: Sequence[int], inputs: Sequence[int]) -> list[Prefix]:
    """Returns which widths of weights and inputs go together, rising.

    Each width of the weight goes with the least width of inputs that is not below it; what is
    left goes with the nearest.

    Args:
        widths: Of weights, at least one.
        inputs: Those that inputs are switched between, rising; none where they have one.
    """
    if not inputs:
        return [Prefix(bits, None) for bits in sorted(widths)]
    pairs = [Prefix(bits, next((one for one in inputs if one >= bits), inputs[-1]))
             for bits in widths]
    pairs += [Prefix(min(widths, key=lambda bits: abs(bits - one)), one)
              for one in inputs if one not in {pair.input for pair in pairs}]
    return sorted(pairs, key=lambda pair: (pair.weight, pair.input or 0))


@dataclass(frozen=True)
class WidthPairs:
    """Which widths of weights and inputs are solved together, and on which forwards.

    Args:
        pairs: Each width of both comes in one at least, rising.
        prefixes: Those at which each batch runs.
    """

    pairs: tuple[Prefix, ...]
    prefixes: tuple[Prefix, ...]

    @classmethod
    def of(cls, plan: BitPlan, method: Method) -> 'WidthPairs':
        """Of a plan, see ``pair_widths``; one pair where no layer has several widths."""
        widths = next((layer.widths for layer in plan.layers if layer.widths), ())
        inputs = plan.activation_widths
        one_weight = plan.layers[0].weight.num_bits if plan.layers else 8
        pairs = pair_widths(widths or (one_weight,), inputs)
        return cls(tuple(pairs), tuple(_prefixes(pairs, method.branches)))

    def prefix_of(self, pair: Prefix) -> int:
        """Number of the prefix that is nearest to a pair, of two the wider."""
        distances = [abs(prefix.weight - pair.weight)
                     + abs((prefix.input or 0) - (pair.input or 0)) for prefix in self.prefixes]
        return max(number for number, distance in enumerate(distances)
                   if distance == min(distances))


def _prefixes(pairs: Sequence[Prefix], branches: str | int) -> list[Prefix]:
    """The pairs at which batches run; see ``NestedBitSplit``."""
    if branches == 'auto':
        alike = [pair for pair in pairs if min(pair.weight, pair.input or 8) >= ALIKE_BITS]
        return [pair for pair in pairs if pair not in alike[:-1]]
    most = len(pairs) if branches == 'all' else min(int(branches), len(pairs))
    return [pairs[-1]] if most == 1 else [
        pairs[round(index * (len(pairs) - 1) / (most - 1))] for index in range(most)]


class WidthSolver:
    """Called by the lockstep pass, layer after layer.

    Args:
        solver: Solves layers and products of one width.
        pairs: Of the calibration.
    """

    def __init__(self, solver: LayerSolver, pairs: WidthPairs):
        self.solver, self.pairs = solver, pairs

    def __call__(self, name: str, offers: dict[tuple[int, int], list[Any]]) -> None:
        """Solves a layer or product from captures by (batch, number of the prefix)."""
        planned = self.solver.prepared.plan
        plan = next(plan for plan in (*planned.layers, *planned.products) if plan.name == name)
        if isinstance(plan, ProductPlan):
            if plan.widths:
                self.solver.solve_product(plan, self._at_widths(plan, offers))
            else:
                self.solver(name, self._in_turn(offers))
        elif plan.widths or plan.input_widths:
            self._solve(plan, offers)
        else:
            self.solver(name, self._at_widest(offers))

    def _at_widths(self, plan: ProductPlan, offers: dict[tuple[int, int], list[ProductCapture]],
                   ) -> dict[int, dict[int, list[ProductCapture]]]:
        """Of each width of a product, by batch, what the forwards that are nearest gave it."""
        found = {}
        for bits in plan.widths:
            pair = next(pair for pair in self.pairs.pairs if pair.input == bits)
            prefix = self.pairs.prefix_of(pair)
            found[bits] = {batch: captures for (batch, number), captures in offers.items()
                           if number == prefix}
        return found

    def _at_widest(self, offers: dict[tuple[int, int], list[Any]]) -> dict[int, list[Any]]:
        """Of each batch what it gave at the widest widths. Least squares on inputs that narrow
        widths have made noisy would shrink a weight, for every width (YOLOX-nano, 8 bits: 3 AP).
        """
        return {batch: captures for (batch, number), captures in offers.items()
                if number == len(self.pairs.prefixes) - 1}

    def _in_turn(self, offers: dict[tuple[int, int], list[Any]]) -> dict[int, list[Any]]:
        """Of each batch what it gave at one of its widths: ranges are of all, in as many values."""
        count = len(self.pairs.prefixes)
        # Every second batch may be judged on: two in a row have the same width.
        return {batch: captures for (batch, number), captures in offers.items()
                if number == batch // 2 % count}

    def _solve(self, plan: LayerPlan, offers: dict[tuple[int, int], list[CallCapture]]) -> None:
        solver, prepared = self.solver, self.solver.prepared
        with solver.stopwatch('solve'):
            started = time.perf_counter()
            by_prefix: list[list[CallCapture]] = []
            targets: list[Tensor] = []
            for number in range(len(self.pairs.prefixes)):
                captures, targets = solver.align(
                    plan.name, {batch: calls for (batch, of), calls in offers.items()
                                if of == number}, keep=number + 1 < len(self.pairs.prefixes))
                by_prefix.append(captures)
            check_seen(plan.name, targets, solver.forwards.team)
            pairs = self.pairs.pairs
            solved = solve_widths(
                prepared.layers[plan.name], plan, solver.method, pairs,
                [by_prefix[self.pairs.prefix_of(pair)] for pair in pairs], targets,
                solver.forwards.team, solver.stopwatch,
                prepared.all_stream_qparams(plan.stream) if plan.stream else ())
            solver.solved.add(plan, solver.noted(plan, solved), time.perf_counter() - started)


def solve_at_all_widths(look: Watching, prepared: PreparedModel, run: FloatRun, method: Method,
                        solved: SolvedLayers, stopwatch: Stopwatch) -> None:
    """The quantized pass of a model of several widths; all layers end at their widest.

    Args:
        look: What is known of the model, and its batches.
        prepared: It.
        run: What the float pass has left.
        method: Chooses codes.
        solved: Where solutions go; what has been taken over is there already.
        stopwatch: Told what it takes.
    """
    pairs = WidthPairs.of(prepared.plan, method)
    owners = find_owners(look.flow, set(prepared.sites), run.record.patterns)
    solver = LayerSolver(prepared, look.forwards, run, method, solved, stopwatch)
    lockstep = WidthLockstep(prepared, look.forwards, run.record.counts, owners, run.sampler,
                             run.tape, WidthSolver(solver, pairs), pairs.prefixes)
    with stopwatch('quantized_pass'):
        lockstep.run()
    use_widest(prepared)


def use_widest(prepared: PreparedModel) -> None:
    """Switches all layers, products and residual streams to their widest widths."""
    for site in prepared.sites.values():
        site.use(**{side: quantizer.widths[-1] for side, quantizer in site.quantizers().items()
                    if quantizer is not None})
    for module in switched_streams(prepared):
        use_stream(module, stream_widths(module)[0][-1])


def tune_widths(stages: Sequence[TuningStage], look: Watching, calibration: CalibrationSpec,
                solved: SolvedLayers, stopwatch: Stopwatch, no_tuning: str, method: Method,
                ) -> list[dict[str, Any]]:
    """Runs stages of tuning, at each pair of widths that the method wants tuned.

    Args:
        stages, look, calibration, solved, stopwatch, no_tuning: See ``tune``.
        method: Says at which.

    Returns:
        What each stage says of itself, at each pair.
    """
    prepared = solved.prepared
    if not stages or not prepared.plan.several_widths:
        return tune(stages, look, calibration, solved, stopwatch, no_tuning)
    outcomes = []
    try:
        for pair in WidthPairs.of(prepared.plan, method).pairs:
            if method.tunes(pair.input):
                use_everywhere(prepared, pair)
                outcomes += [{**outcome, 'weight_bits': pair.weight, 'input_bits': pair.input}
                             for outcome in tune(stages, look, calibration, solved, stopwatch,
                                                 no_tuning)]
    finally:
        use_widest(prepared)
    for layer in prepared.layers.values():
        solution = layer.solution()
        if solution.nesting is not None and outcomes:
            layer.install(solution_as_stored(solution))  # what files hold of what has been learned
    return outcomes
