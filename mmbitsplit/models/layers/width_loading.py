"""Saves and loads the state of a layer of several widths as a checkpoint has it."""

from typing import Any, Protocol

from mmbitsplit.models.layers.layer_state import plan_row, solution_from_file, solution_to_file
from mmbitsplit.structures import LayerGeometry, LayerSolution


class SwitchedLayer(Protocol):
    """A quantized layer, as it is needed here; see ``QuantizedLayer``."""

    geometry: LayerGeometry

    def quantizers(self) -> dict[str, Any]:
        """By side."""

    def solution(self) -> LayerSolution:
        """Of all widths."""

    def install(self, solution: LayerSolution) -> None:
        """Computes with it."""

    def use(self, weight: int | None = None, input: int | None = None,
            output: int | None = None) -> None:
        """Switches to other widths."""


def save_widths(layer: SwitchedLayer, state: dict[str, Any], prefix: str) -> None:
    """Puts the tensors of all widths into a state dict, in place of those of the quantizers."""
    for side in layer.quantizers():
        for key in [key for key in state if key.startswith(f'{prefix}{side}_quantizer.')]:
            del state[key]
    state.update({prefix + name: value for name, value in solution_to_file(
        layer.solution(), layer.geometry).items()})


def load_widths(layer: SwitchedLayer, state: dict[str, Any], prefix: str,
                missing_keys: list[str]) -> None:
    """Installs what a state dict holds of all widths; those in use stay in use.

    Raises:
        ValueError: A part has not the bytes that it must have; names the layer.
    """
    solution = layer.solution()
    names = solution_to_file(solution, layer.geometry)
    found = {name: state.pop(prefix + name) for name in names if prefix + name in state}
    missing_keys += [prefix + name for name in names if name not in found]
    if len(found) == len(names):
        in_use = {side: quantizer.num_bits for side, quantizer in layer.quantizers().items()}
        try:
            layer.install(solution_from_file(found, plan_row(solution, layer.geometry),
                                             layer.geometry))
        except ValueError as error:
            raise ValueError(f"Layer '{prefix.removesuffix('.')}': {error}") from error
        layer.use(**in_use)
    # What torch goes on to load into the quantizers: what they hold by now.
    for side, quantizer in layer.quantizers().items():
        state.update({f'{prefix}{side}_quantizer.{name}': value
                      for name, value in quantizer.state_dict().items()})
