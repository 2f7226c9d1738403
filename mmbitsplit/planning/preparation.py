"""Plans a model from what was watched of it, and prepares or divides it by the plan."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mmbitsplit.methods import Method, build_method
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.opening import open_forwards
from mmbitsplit.passes.replay import ReplayPoint
from mmbitsplit.passes.thread_state import in_a_state_of_its_own
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.request_plan import (
    check_request,
    layers_to_find,
    make_plan,
    modules_left_closed,
)
from mmbitsplit.planning.units import MAX_LAYERS, find_units
from mmbitsplit.structures import BitPlan, QuantSpec, Unit


def prepare_as_requested(look: Watching, spec: QuantSpec) -> PreparedModel:
    """Plans and prepares until the prepared model computes what the float model does.

    Raises:
        ValueError: See ``make_plan`` and ``Watching.prepare``.
    """
    while (prepared := look.prepare(make_plan(look.forwards.model, look.flow, spec))) is None:
        pass
    return prepared


def open_as_requested(forwards: Forwards, spec: QuantSpec) -> Forwards:
    """Opens the model's calls that multiply, but for modules that the request leaves alone."""
    return open_forwards(forwards, modules_left_closed(forwards.model, spec))


def divide(look: Watching, plan: BitPlan, spec: QuantSpec, method: Method) -> tuple[Unit, ...]:
    """Divides a watched model into units, as large as the method has them.

    Raises:
        ValueError: See ``find_units``.
    """
    return find_units(look.flow, plan, overrides=spec.overrides, counts=look.counts,
                      max_layers=1 if method.granularity == 'layer' else MAX_LAYERS,
                      granularity='block' if method.granularity == 'layer' else method.granularity,
                      merge=method.merge)


@in_a_state_of_its_own
def divide_as_requested(model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
                        run: Callable[[nn.Module, Any], Any],
                        replay_points: Sequence[ReplayPoint] = (),
                        labels: Sequence[str] | None = None) -> tuple[Unit, ...]:
    """Watches a float model and divides it into units; it stays float, its calls opened.

    Args:
        model: Float model.
        batches: At least one; the first is watched, others where they call more layers.
        spec: The request.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: See ``calibrate``.
        labels: What each batch is called in error messages.

    Raises:
        ValueError: See ``make_plan`` and ``find_units``.
    """
    check_request(model, spec)
    forwards = open_as_requested(Forwards.of(
        model.eval(), batches, run, seed=spec.calibration.seed, replay_points=replay_points,
        labels=labels), spec)
    look = Watching(forwards, layers_to_find(model, spec))
    plan = make_plan(model, look.flow, spec)
    return divide(look, plan, spec, build_method(spec.method))
