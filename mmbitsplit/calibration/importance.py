"""Finds how much positions and channels matter, where the request or the method asks for it."""

from collections.abc import Callable, Container
from dataclasses import replace

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel, last_layers
from mmbitsplit.passes.importance import ImportancePass, Maps
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import divide
from mmbitsplit.solving.model_loss import usual_kind
from mmbitsplit.structures import QuantSpec


def asks_for_importance(spec: QuantSpec, method: Method) -> bool:
    """Whether the pass with gradients is run."""
    asked = spec.calibration.sampling != 'even' or 'importance' in method.needs
    return asked and bool(spec.calibration.num_images)


def find_importance(run: FloatRun, prepared: PreparedModel, look: Watching, spec: QuantSpec,
                    method: Method, done: Container[str], stopwatch: Stopwatch,
                    progress: Callable[[int, int], None]) -> None:
    """Runs the pass with gradients, if anybody asks for what it finds.

    Args:
        run: What the float pass will need; is given what is found, and positions where they are
            to be drawn by it.
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
    last, sampling = last_layers(look.flow), spec.calibration.sampling
    kind = usual_kind([prepared.model.get_submodule(name) for name in last])
    if sampling == 'confidence' and kind == 'squared_error':
        kind = 'confidence'
    rows: frozenset[str] = frozenset()
    if sampling != 'even':
        rows = frozenset(name for name in prepared.layers if name not in done)
        run.sampler = replace(run.sampler, chosen={})

    def choose(batch: int, maps: Maps) -> None:
        for name in rows & maps.keys():
            for call, importance in enumerate(maps[name]):
                run.sampler.choose(name, call, batch, importance)

    gradients = ImportancePass(
        prepared=prepared, forwards=look.forwards, last=last, kind=kind,
        seed=spec.calibration.seed, rows=rows, take=choose,
        units=divide(look, prepared.plan, spec, method) if 'importance' in method.needs else ())
    with stopwatch('importance'):
        run.importance = gradients.run(progress)
