"""Keeps what a method needs that uses the loss of the whole model, see ``methods.solved_model``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from mmbitsplit.functional import ActivationSamples
from mmbitsplit.models import QuantizedLayer, apply
from mmbitsplit.solving.input_scales import Candidate, input_candidates
from mmbitsplit.solving.solve_layer import layer_solution
from mmbitsplit.structures import ActivationSpec, LayerGeometry, LayerPlan, QParams, WeightSolution


@dataclass(frozen=True, kw_only=True)
class KeptLayer:
    """A layer that has been solved, and where it may be written to.

    Args:
        layer: The layer.
        plan: Its bits and modes.
        samples: Of its inputs in the quantized model.
        strength: Of ECAQ, as chosen when it was solved.
        output_qparams: Of its output, as chosen then.
    """

    layer: QuantizedLayer
    plan: LayerPlan
    samples: ActivationSamples
    strength: float | None = None
    output_qparams: QParams | None = None

    @property
    def geometry(self) -> LayerGeometry:
        """How inputs meet weights."""
        return self.layer.geometry

    @property
    def weight(self) -> Tensor:
        """(G, M, N) float weight."""
        return self.layer.float_rows()

    def candidate(self, spec: ActivationSpec) -> Candidate:
        """Searches the input scales by a spec of its own."""
        return input_candidates(self.samples, spec)[0]

    def install(self, solved: WeightSolution, qparams: QParams | None) -> None:
        """Writes codes and input quantization into the layer; its bias is the float one."""
        solution = layer_solution(solved, None, qparams, self.layer.float_weights().bias,
                                  self.layer.geometry, self.plan)
        apply(self.layer, replace(solution, output_qparams=self.output_qparams))


@dataclass
class KeptModel:
    """The whole model, every layer solved.

    Args:
        measure: The loss of the model as it stands, the same in every process of a team.
        losses: Those that a calibration which was interrupted has measured, in order. They are
            returned again instead of measured: a method whose steps depend on them alone goes
            on where it was.
        keep: Gets all losses after each that is measured.
        layers: By name, in the order they were solved.
        told: Told how many losses have been asked for.
    """

    measure: Callable[[], float]
    losses: list[float] = field(default_factory=list)
    keep: Callable[[list[float]], None] = lambda losses: None
    layers: dict[str, KeptLayer] = field(default_factory=dict)
    told: Callable[[int], None] = lambda asked: None
    asked: int = 0

    def loss(self) -> float:
        """Of the model as it stands."""
        if self.asked == len(self.losses):
            self.losses.append(self.measure())
            self.keep(self.losses)
        self.asked += 1
        self.told(self.asked)
        return self.losses[self.asked - 1]
