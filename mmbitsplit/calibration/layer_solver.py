"""Solves a layer when the lockstep pass has its inputs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.calibration.solved_layers import SolvedLayers
from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.capture import CallCapture, merge_samples
from mmbitsplit.passes.float_pass import check_finite
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.product_capture import ProductCapture
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.solving.data_free import solve_from_weights
from mmbitsplit.solving.positions import check_seen
from mmbitsplit.solving.solve_layer import Solved, solve_layer
from mmbitsplit.solving.solve_product import solve_product, solve_product_widths
from mmbitsplit.structures import LayerPlan, LayerSolution, ProductPlan

TIED = "its codes and scales are those of embedding '{}', whose weight it multiplies by"
UNREACHED = 'no gradient of the raw outputs reaches it: its positions and channels count alike'


@dataclass(frozen=True)
class LayerSolver:
    """Called by the lockstep pass, layer after layer.

    Args:
        prepared: The model.
        forwards: Of it.
        run: What the float pass has left.
        method: Chooses the codes.
        solved: Where solutions go.
        stopwatch: Told what solving takes.
    """

    prepared: PreparedModel
    forwards: Forwards
    run: FloatRun
    method: Method
    solved: SolvedLayers
    stopwatch: Stopwatch

    def __call__(self, name: str, offers: dict[int, list[Any]]) -> None:
        """Solves a layer or product from this process's captures of it, by batch."""
        if name in self.prepared.products:
            plan = next(plan for plan in self.prepared.plan.products if plan.name == name)
            self.solve_product(plan, {bits: offers for bits in plan.widths or (0,)})
            return
        with self.stopwatch('solve'):
            started, team = time.perf_counter(), self.forwards.team
            captures, targets = self.align(name, offers)
            layer = self.prepared.layers[name]
            plan = next(plan for plan in self.prepared.plan.layers if plan.name == name)
            check_seen(name, targets, team)
            shared = self.prepared.all_stream_qparams(plan.stream) if plan.stream else ()
            solved = solve_layer(layer, plan, self.method, captures, targets, team,
                                 self.stopwatch, shared, given=table_of(self.prepared, plan))
            samples = merge_samples(captures, team) if self.method.refines else None
            self.solved.add(plan, self.noted(plan, solved), time.perf_counter() - started, samples)

    def noted(self, plan: LayerPlan, solved: Solved) -> Solved:
        """A solution with what there is to say of its layer."""
        notes = [*solved.notes, *((TIED.format(plan.codes_of),) if plan.codes_of else ()),
                 *((UNREACHED,) if plan.name in self.run.importance.unreached else ())]
        return replace(solved, notes=tuple(notes))

    def solve_product(self, plan: ProductPlan,
                      offers: Mapping[int, Mapping[int, list[ProductCapture]]]) -> None:
        """Solves a product of activations.

        Args:
            plan: Of the product.
            offers: By width, this process's captures by batch; those of the one width that it has
                under any number.
        """
        with self.stopwatch('solve'), self.stopwatch('solve_scales'):
            started, captures = time.perf_counter(), {}
            for bits, of_width in offers.items():
                captures[bits] = [one for batch in sorted(of_width) for one in of_width[batch]]
                for one in captures[bits]:
                    check_finite_ends(plan.name, one, self.forwards.labels[one.batch])
            team = self.forwards.team
            solved = solve_product_widths(plan, captures, team) if plan.widths \
                else solve_product(plan, *captures.values(), team)
            self.solved.add_product(plan, solved, time.perf_counter() - started)

    def align(self, name: str, offers: dict[int, list[CallCapture]], keep: bool = False,
              ) -> tuple[list[CallCapture], list[Tensor]]:
        """Pairs the calls of both passes, batch by batch.

        Args:
            name: Of the layer.
            offers: By batch.
            keep: The targets are asked for again.
        """
        captures, targets, record = [], [], self.run.record
        for batch in sorted(offers):
            # Where the model is refined they are looked at again afterwards.
            wanted = record.targets[name, batch] if keep or self.method.refines \
                else record.targets.pop((name, batch))
            # Whole shapes: of inputs of different sizes equally many positions may be sampled.
            label = self.forwards.labels[batch]
            if [capture.shape for capture in offers[batch]] != record.shapes[name, batch]:
                raise RuntimeError(
                    f"Layer '{name}' on {label}: the two passes see inputs of different sizes. A "
                    'step whose result depends on the data comes before; name it as a replay '
                    'point.')
            for capture in offers[batch]:
                check_finite(name, capture.patches, label, 'quantized')
            captures += offers[batch]
            targets += wanted
        return captures, targets


def check_finite_ends(name: str, capture: ProductCapture, label: str) -> None:
    """Raises ``ValueError`` naming product and image when an input holds NaN or infinity."""
    for side in capture.values:
        if not bool(torch.isfinite(capture.low[side]).all() & torch.isfinite(
                capture.high[side]).all()):
            raise ValueError(
                f"Input {side} of product '{name}' holds NaN or infinity in the quantized model, "
                f'on {label}. Check the checkpoint (does the float model evaluate well?) and that '
                f"image, or leave the product in float with overrides=[dict(match='{name}', "
                'skip=True)].')


def table_of(prepared: PreparedModel, plan: LayerPlan) -> LayerSolution | None:
    """Codes of the embedding whose weight a layer multiplies by; ``None`` for one of its own."""
    return prepared.embeddings[plan.codes_of].solution() if plan.codes_of else None


def solve_without_images(prepared: PreparedModel, method: Method, solved: SolvedLayers,
                         stopwatch: Stopwatch) -> None:
    """Solves all layers from their weights alone.

    Args:
        prepared: The model.
        method: One that needs nothing.
        solved: Where solutions go; what has been taken over is there already.
        stopwatch: Told what solving takes.
    """
    with stopwatch('solve'):
        for plan in prepared.plan.layers:
            started, layer = time.perf_counter(), prepared.layers[plan.name]
            if not layer.quantized:
                solution = solve_from_weights(layer, plan, method,
                                              table_of(prepared, plan))
                solved.add(plan, solution, time.perf_counter() - started)
