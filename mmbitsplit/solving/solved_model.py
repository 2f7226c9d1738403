"""Keeps what a method needs that improves the whole model, see ``methods.solved_model``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from mmbitsplit.functional import ActivationSamples
from mmbitsplit.models import QuantizedLayer, apply
from mmbitsplit.solving.input_scales import Candidate, input_candidates
from mmbitsplit.solving.solve_layer import layer_solution
from mmbitsplit.structures import ActivationSpec, LayerGeometry, LayerPlan, QParams, WeightSolution


@dataclass(kw_only=True)
class KeptLayer:
    """A layer as it was before it was solved, and where it may be written to.

    Args:
        layer: The layer.
        plan: Its bits and modes.
        weight: (G, M, N) float weight.
        bias: (out_channels,) float, or ``None``.
        samples: Of its inputs in the quantized model.
        strength: Of ECAQ, as chosen when it was solved.
        output_qparams: Of its output, as chosen then.
    """

    layer: QuantizedLayer
    plan: LayerPlan
    weight: Tensor
    bias: Tensor | None
    samples: ActivationSamples
    strength: float | None = None
    output_qparams: QParams | None = None

    @property
    def geometry(self) -> LayerGeometry:
        """How inputs meet weights."""
        return self.layer.geometry

    def candidate(self, spec: ActivationSpec) -> Candidate:
        """Searches the input scales by a spec of its own."""
        return input_candidates(self.samples, spec)[0]

    def install(self, solved: WeightSolution, qparams: QParams | None) -> None:
        """Writes codes and input quantization into the layer; its bias is the float one."""
        solution = layer_solution(solved, None, qparams, self.bias, self.layer.geometry,
                                  self.plan)
        apply(self.layer, replace(solution, output_qparams=self.output_qparams))


@dataclass
class KeptModel:
    """The whole model, every layer solved.

    Args:
        loss: Of the model as it stands, the same in every process of a team.
        layers: By name, in the order they were solved.
    """

    loss: Callable[[], float]
    layers: dict[str, KeptLayer] = field(default_factory=dict)

    def remember(self, plan: LayerPlan, layer: QuantizedLayer, samples: ActivationSamples) -> None:
        """Keeps a layer that is about to be solved; its float weights are there until the end."""
        bias = layer.float_weights().bias
        self.layers[plan.name] = KeptLayer(
            layer=layer, plan=plan, bias=None if bias is None else bias.detach(),
            samples=samples, weight=layer.float_rows())
