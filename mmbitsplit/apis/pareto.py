"""The front of plans of any torch module whose layers have several widths."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from mmbitsplit.apis.batches import ModelCall, arrays_to_tensors, read_batches
from mmbitsplit.calibration import Progress, ReplayPoint
from mmbitsplit.calibration.pareto import FrontOptions, find_front
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.structures.options import from_mapping
from mmbitsplit.structures.plan_front import PlanFront
from mmbitsplit.structures.widths import read_limits

Budget = float | str | Mapping[str, float]


def pareto_front(model: nn.Module, batches: Iterable[Any], budgets: Iterable[Budget] = (), *,
                 run: Callable[[nn.Module, Any], Any] | None = None,
                 reference: nn.Module | None = None,
                 replay_points: Sequence[ReplayPoint] = (),
                 reference_points: Sequence[ReplayPoint] = (),
                 progress: Callable[[Progress], None] = lambda step: None,
                 **options: Any) -> PlanFront:
    """Finds the plans of a model that are worth having; nothing is calibrated.

    Each plan that is looked at is put into the model (``set_plan``) and measured there, without
    labels. ``front.best('4').plan`` is a plan as ``set_plan`` and ``quantize_model`` take it.

    Args:
        model: Quantized with several widths. Those in use are as before afterwards.
        batches: Inputs, as for ``quantize_model``; those that it was quantized on will do.
        budgets: Each a plan: 4.5 (mean bits of a weight), ``'12MB'``, ``'bitops=0.2'``,
            ``'4.5,bitops=0.2'`` or a dict of limits. Where none is given, 3, 3.5, 4, 5 and 6 bits
            as far as they are possible.
        run: How to run the model on a batch, when calling it is not enough.
        reference: What outputs are compared with, such as the float model. When not given, the
            model with all blocks at their widest.
        replay_points: See ``quantize_model``.
        reference_points: The same calls of ``reference``.
        progress: Told every plan.
        options: Of ``calibration.pareto.FrontOptions``: ``search``, ``evaluations``,
            ``granularity``, ``pairs``, ``loss``, ``seed``.

    Raises:
        ValueError: The model has one width, a budget cannot be kept, or an option is not known.
    """
    asked = from_mapping(FrontOptions, {**options, 'budgets': read_budgets(budgets)},
                         'pareto_front')
    batches, call = read_batches(batches), run or ModelCall()
    if run is None:
        batches = arrays_to_tensors(batches, model)
    return find_front(
        Given(model=model, batches=batches, run=call, replay_points=replay_points), asked,
        reference=None if reference is None else Given(
            model=reference, batches=batches, run=call, replay_points=reference_points),
        progress=progress)


def read_budgets(budgets: Iterable[Budget]) -> dict[str, dict[str, float]]:
    """Returns limits by what each budget is called.

    Raises:
        ValueError: A limit is not known, or given twice.
    """
    found = {}
    for budget in budgets:
        if isinstance(budget, Mapping):
            limits = dict(budget)
            text = ','.join(f'{name}={value:g}' for name, value in limits.items())
            found[text] = read_limits(text.split(','))
        else:
            text = budget if isinstance(budget, str) else f'{budget:g}'
            found[text] = read_limits(text.split(','))
    return found
