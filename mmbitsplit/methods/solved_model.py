"""What a method is given that needs the loss of the whole model: all layers, already solved."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from mmbitsplit.structures import (
    ActivationSpec,
    LayerGeometry,
    LayerPlan,
    QParams,
    WeightSolution,
)


class InputCandidate(Protocol):
    """One way to quantize a layer's input."""

    @property
    def qparams(self) -> QParams | None:
        """``None`` for a float input."""

    def weight(self, weight: Tensor, geometry: LayerGeometry) -> Tensor:
        """The float weight (G, M, N) on the scale of the inputs that enter the product."""


class SolvedLayer(Protocol):
    """A layer as it was before it was solved, and where it may be written to.

    Attributes:
        plan: Its bits and modes.
        geometry: How inputs meet weights.
        weight: (G, M, N) float weight.
        strength: Of ECAQ, as chosen when it was solved.
    """

    plan: LayerPlan
    weight: Tensor
    strength: float | None

    @property
    def geometry(self) -> LayerGeometry:
        """How inputs meet weights."""

    def candidate(self, spec: ActivationSpec) -> InputCandidate:
        """Searches the input scales by a spec of its own."""

    def install(self, solved: WeightSolution, qparams: QParams | None) -> None:
        """Writes codes and input quantization into the layer; its bias is the float one."""


class SolvedModel(Protocol):
    """The whole model, every layer solved.

    Attributes:
        layers: By name, in the order they were solved.
    """

    layers: Mapping[str, SolvedLayer]

    def loss(self) -> float:
        """Of the model as it stands; the same in every process of a team."""
