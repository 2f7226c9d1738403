"""Solutions of all layers at all their widths, of which any plan can be installed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from mmbitsplit.models import PreparedModel, apply
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams, Widths

BYTES_OF_A_CHANNEL = 3 * 4  # scale, bias, offset


class Banked(NamedTuple):
    """A layer's solution at some widths.

    Args:
        solution: What is written into the layer; codes in int8.
        error: Relative squared error of the layer's output on positions that it was not fitted to.
        channels: (out_channels,) float64 mean squared error of each there, where it is asked for.
    """

    solution: LayerSolution
    error: float
    channels: Tensor | None = None


@dataclass
class WidthBank:
    """Solved layers of every width; plans are put into the model from here.

    It holds a byte of codes for each weight and width, and the model that is installed a float32
    weight more: ``bytes_for`` says how much before anything is solved.

    Args:
        prepared: The model.
        base: Widths of layers that a plan leaves out.
        layers: By name, solutions by widths.

    Attributes:
        installed: The plan that the model computes now; empty while it is float.
    """

    prepared: PreparedModel
    base: Mapping[str, Widths]
    layers: dict[str, dict[Widths, Banked]] = field(default_factory=dict)
    installed: dict[str, Widths] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all tensors that it holds."""
        return sum(_bytes(banked.solution) for row in self.layers.values()
                   for banked in row.values())

    def add(self, name: str, widths: Widths, banked: Banked) -> None:
        """Keeps a solution, of one width."""
        self.layers.setdefault(name, {})[widths] = banked._replace(
            solution=replace(banked.solution, narrower=()))

    def install(self, plan: Mapping[str, Widths]) -> None:
        """Makes the model compute a plan; only layers that change are written.

        Args:
            plan: Widths by layer; others get those of the base model.

        Raises:
            ValueError: A layer or a width of it is not in the bank.
        """
        for name in plan:
            if name not in self.layers:
                raise ValueError(f"The plan names layer '{name}', which is not quantized here.")
        for name, row in self.layers.items():
            widths = plan.get(name, self.base[name])
            if widths not in row:
                raise ValueError(f"Layer '{name}' has no solution at {widths}; it has some at "
                                 f'{", ".join(map(str, row))}.')
            if self.installed.get(name) != widths:
                apply(self.prepared.layers[name], row[widths].solution)
                self.installed[name] = widths

    def take_out(self) -> None:
        """Makes all layers float layers again, with the very weights that they had."""
        for name in self.installed:
            self.prepared.layers[name].to_float()
        self.installed.clear()

    @contextmanager
    def holding(self, plan: Mapping[str, Widths]) -> Iterator[None]:
        """Inside, the model computes a plan; float again afterwards."""
        try:
            self.install(plan)
            yield
        finally:
            self.take_out()


def bytes_for(geometries: Mapping[str, LayerGeometry], choices: Mapping[str, Sequence[Widths]],
              ) -> int:
    """Bytes that the bank of a model will hold, about.

    Args:
        geometries: Of the planned layers.
        choices: Widths of each.
    """
    return sum(len(row) * (math.prod(geometries[name].weight_shape)
                           + BYTES_OF_A_CHANNEL * geometries[name].out_channels)
               for name, row in choices.items())


def _bytes(value: LayerSolution | QParams) -> int:
    total = 0
    for part in vars(value).values():
        if isinstance(part, Tensor):
            total += part.numel() * part.element_size()
        elif isinstance(part, QParams):
            total += _bytes(part)
    return total
