"""Finds how much positions and channels matter, where the request or the method asks for it."""

from collections.abc import Callable, Container

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel, last_layers
from mmbitsplit.passes.importance import ImportancePass
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import divide
from mmbitsplit.solving.model_loss import usual_kind
from mmbitsplit.structures import QuantSpec


def asks_for_importance(spec: QuantSpec, method: Method) -> bool:
    """Whether the pass with gradients is run."""
    return bool(spec.calibration.num_images) and 'importance' in method.needs


def find_importance(run: FloatRun, prepared: PreparedModel, look: Watching, spec: QuantSpec,
                    method: Method, done: Container[str], stopwatch: Stopwatch,
                    progress: Callable[[int, int], None]) -> None:
    """Runs the pass with gradients, if anybody asks for what it finds.

    Args:
        run: What the float pass will need; is given what is found.
        prepared: The model, its layers still in float.
        look: What is known of it, and its batches.
        spec: The request.
        method: Says whether channels of units are asked for.
        done: Layers solved already.
        stopwatch: Told what it takes.
        progress: Told (batches done, batches in all).

    Raises:
        ValueError: See ``ImportancePass.run``.
    """
    if not asks_for_importance(spec, method):
        return
    last = last_layers(look.flow)
    gradients = ImportancePass(
        prepared=prepared, forwards=look.forwards, last=last,
        kind=usual_kind([prepared.model.get_submodule(name) for name in last]),
        seed=spec.calibration.seed, units=divide(look, prepared.plan, spec, method))
    with stopwatch('importance'):
        run.importance = gradients.run(progress)
