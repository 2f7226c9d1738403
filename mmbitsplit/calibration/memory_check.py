"""Refuses a calibration that would not fit into memory, before anything is solved."""

from dataclasses import replace

import torch

from mmbitsplit.calibration.importance import asks_for_importance
from mmbitsplit.calibration.memory import (
    NOTHING,
    MemoryEstimate,
    check_memory,
    estimate_memory,
    refining_bytes,
    tuning_bytes,
    with_gradients,
    with_tuning,
    with_units,
    with_widths,
)
from mmbitsplit.calibration.unit_memory import learning_bytes
from mmbitsplit.calibration.unit_solver import inputs_kept, unit_bytes
from mmbitsplit.calibration.width_solver import WidthPairs
from mmbitsplit.methods import Method
from mmbitsplit.methods.tuning import build_stages
from mmbitsplit.models.surgery.prepare import planned_geometries
from mmbitsplit.passes.free_memory import memory_budget
from mmbitsplit.passes.repeated_calls import find_owners
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import divide
from mmbitsplit.solving.model_loss import loss_batches
from mmbitsplit.solving.statistics import check_large_layers
from mmbitsplit.structures import BitPlan, QuantSpec


def check_plan_memory(look: Watching, plan: BitPlan, spec: QuantSpec, method: Method,
                      ) -> MemoryEstimate:
    """Returns what calibrating by a plan will hold in memory.

    Raises:
        ValueError: It is more than the budget; or a layer is too large for the method.
    """
    if not spec.calibration.num_images:
        return NOTHING
    model, batches = look.forwards.model, look.forwards.batches
    geometries = planned_geometries(model, look.flow, plan)
    check_large_layers(method, geometries)
    products = [product.name for product in plan.products]
    owners = find_owners(look.flow, {*geometries, *products})
    estimate = estimate_memory(look.flow, geometries, owners, look.sizes,
                               spec.calibration.rows_per_layer, look.forwards.total, products)
    if method.refines:
        estimate = replace(estimate, refining=refining_bytes(
            look.flow, geometries, look.sizes,
            loss_batches(look.forwards, method.loss_batches)))
    if asks_for_importance(spec, method):
        estimate = with_gradients(estimate, look.flow, look.sizes, 0 if
                                  spec.calibration.sampling == 'even' else
                                  spec.calibration.rows_per_layer * len(geometries))
    if method.solves == 'layer' and plan.several_widths:
        pairs = WidthPairs.of(plan, method)
        estimate = with_widths(estimate, len(pairs.prefixes), len(pairs.pairs))
    asleep = estimate.suspended + estimate.running
    if method.solves == 'unit':
        units = divide(look, plan, spec, method)
        total = sum(sum(part.values()) for part in look.forwards.team.gather(look.sizes))
        keeps = unit_bytes(spec.calibration)
        estimate = with_units(estimate, look.flow, units, total, keeps, learning_bytes(
            look.flow, units, geometries, batch_size=method.batch_size, total=total,
            budget=keeps, inputs=inputs_kept(method.width_pairs(spec))))
    device = next((value.device for value in model.parameters()), torch.device('cpu'))
    budget = memory_budget(spec.calibration.memory_budget, device)
    if spec.tuning:
        stages = build_stages(spec.tuning)
        estimate = with_tuning(estimate, tuning_bytes(
            look.flow, geometries, look.sizes, stages, asleep), budget, stages,
            look.forwards.team)
    check_memory(estimate, budget, len(batches) * spec.calibration.batch_size,
                 look.forwards.team.size)
    return estimate
