"""What a tuning stage is, and how a config names one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmbitsplit.methods.tuning.problem import NormProblem, TuningProblem
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import Options, from_mapping

STEP_IMAGES = 4  # that a step looks at, where a stage is not told
Learned = Literal['scales', 'biases', 'input_scales', 'codes', 'zero_points']
WorksOn = Literal['values', 'norms']


class TuningStage(Options):
    """Improves the whole model after all layers have been solved.

    Its fields are the options of a config; their annotations say what is allowed.

    Attributes:
        loss: ``'kl'``, ``'raw'`` or ``'auto'``, see ``solving.tuning.OutputLoss``.
        batch_size: Calibration batches of a step; ``None`` where that depends on their images.
        images: Most images of a batch that is not cut into parts; ``None`` where none is cut.
        mirrored: Whether batches come as they are and seen in a mirror; ``'auto'``: where they
            hold images.
        inner: Weight of what inner layers read beside the outputs; ``None`` where that depends on
            the loss.
        if_possible: Whether a model that cannot be tuned is left as it was solved, with the reason
            in the report; else that is an error.
        holdout: Part of the calibration batches that ``tune`` only judges on, where there is none
            that no layer was solved on.
        last_layers: Whether what ``learns`` names is learned in the last layers, too.
        real_biases: Whether biases are counted in units of the layer's output, not of its spread.
    """

    loss: str = 'auto'
    inner: float | None = 0.0
    batch_size: int | None = 1
    images: int | None = None
    mirrored: bool | Literal['auto'] = False
    if_possible: bool = False
    holdout: float = 0.25
    last_layers: bool = True
    real_biases: bool = False

    @property
    def works_on(self) -> WorksOn:
        """``'values'``: is given a ``TuningProblem``; ``'norms'``: a ``NormProblem``."""
        return 'values'

    @property
    def learns(self) -> Sequence[Learned]:
        """What may move."""
        raise NotImplementedError(f'{type(self).__name__}.learns')

    def tune(self, problem: TuningProblem | NormProblem) -> dict[str, Any]:
        """Moves the model to a better point, or leaves it where it was.

        Every process of a team does the same: what it does must depend on the problem alone.

        Returns:
            What was done, for the report; plain values.
        """
        raise NotImplementedError(f'{type(self).__name__}.tune')


STAGES: dict[str, type] = {}


def register_stage(cls: type) -> type:
    """Makes a frozen dataclass derived from ``TuningStage`` known by its class name."""
    STAGES[cls.__name__] = cls
    return cls


def build_stages(configs: Sequence[Mapping[str, Any]]) -> list[TuningStage]:
    """Builds the stages that ``type`` names, with the other keys as their options, in order.

    Raises:
        ValueError: A stage or one of its options is unknown, with the nearest; or an option has a
            value that is not allowed.
    """
    stages = []
    for index, config in enumerate(configs):
        options, where = dict(config), f'quantization.tuning[{index}]'
        name = options.pop('type', None)
        if not isinstance(name, str):
            raise ValueError(f"{where}={dict(config)!r} is not a dict with a 'type', such as "
                             "dict(type='OutputTuning').")
        if name not in STAGES:
            raise ValueError(f"{where}.type='{name}' is not known; {nearest(name, STAGES)}.")
        stages.append(from_mapping(STAGES[name], options, f'{where} ({name})'))
    return stages
