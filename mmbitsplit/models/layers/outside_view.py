"""How a layer's weight and bias look to others: in the units of the float model's layer.

A layer multiplies by a weight that may hold its input's scale (codes enter the product) and the
factors of a batch norm. A parent that takes the norm of ``layer.weight``, or multiplies by it,
knows nothing of either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmbitsplit.functional import per_input, per_output, rows_to_weight, weight_rows
from mmbitsplit.structures import LayerGeometry


@dataclass(frozen=True)
class OutsideView:
    """What is known of the float model's layer beside what is multiplied by.

    Args:
        has_bias: Whether it has a bias.
        norm_scale: (out_channels,) what a batch norm that was folded multiplied outputs by.
        norm_shift: (out_channels,) and what it added to them then.
        stored: Whether these two belong in a checkpoint: somebody reads the weight.
    """

    has_bias: bool
    norm_scale: Tensor | None = None
    norm_shift: Tensor | None = None
    stored: bool = False


def float_weight(weight: Tensor, geometry: LayerGeometry, input_scale: Tensor | None,
                 norm_scale: Tensor | None) -> Tensor:
    """The weight without the scale of inputs and the factors of a norm.

    Args:
        weight: What a layer multiplies by.
        geometry: Of the layer.
        input_scale: (1,) or (in_channels,), where it holds that of its inputs.
        norm_scale: (out_channels,); channels that a norm multiplied by zero stay as they are.
    """
    if input_scale is not None:
        rows = weight_rows(weight, geometry)
        weight = rows_to_weight(rows / per_input(input_scale, geometry).unsqueeze(1), geometry)
    if norm_scale is not None:
        weight = weight / per_output(norm_scale.where(norm_scale != 0, 1.0), geometry)
    return weight


def float_bias(bias: Tensor, norm_scale: Tensor, norm_shift: Tensor) -> Tensor:
    """The bias without the factors of a norm.

    Args:
        bias: (out_channels,) what a layer adds.
        norm_scale, norm_shift: (out_channels,) each.
    """
    return (bias - norm_shift) / norm_scale.where(norm_scale != 0, 1.0)


class Remembered:
    """A tensor that is made of others, made anew where they have changed; it is in no copy."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Gives its memory back."""
        self._sources: list[tuple[Tensor | None, int]] = []
        self._value: Tensor | None = None

    def of(self, sources: Sequence[Tensor | None], make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` gives.

        Args:
            sources: The tensors that it is made of.
            make: Called where they are others than the last time.
        """
        if any(source is not None and (source.requires_grad or source.is_inference())
               for source in sources):
            return make()
        now = [(source, 0 if source is None else source._version) for source in sources]
        if len(now) != len(self._sources) or any(
                one is not other or version != known
                for (one, version), (other, known) in zip(now, self._sources)):
            value = make()
            if value.is_inference():
                return value
            self._sources, self._value = now, value
        return self._value

    def __reduce__(self) -> tuple:
        return Remembered, ()
