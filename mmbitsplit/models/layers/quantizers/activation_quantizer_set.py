"""Several widths of what enters a layer or leaves it, one of them in use."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import input_factor
from mmbitsplit.models.layers.quantizers.activation_quantizer import ActivationQuantizer
from mmbitsplit.models.layers.quantizers.learned_values import Form
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.models.layers.quantizers.log2_quantizer import Log2Quantizer
from mmbitsplit.models.layers.quantizers.width_set import WidthSet
from mmbitsplit.structures import Log2Params, QParams

Quantizer = ActivationQuantizer | Log2Quantizer


class ActivationQuantizerSet(WidthSet):
    """Activation quantizers of one place, by width; see ``WidthSet``.

    Where a weight carries the scale of the input (``unit``), it carries that which the widest had
    when it was put in here; ``factor`` says what the one in use is in parts of it.

    Args:
        quantizers: Of the same place, each of another width.
        carried: Whether a weight carries the scale; then all are multiples of the widest's.

    Raises:
        ValueError: A width is there twice, or scales are no multiples where a weight carries one.
    """

    base: Tensor | None

    def __init__(self, quantizers: Iterable[Quantizer], carried: bool = False):
        super().__init__(quantizers, 'activation')
        self.register_buffer('base', self.widest.scale.detach().clone() if carried else None,
                             persistent=False)
        self._factor: float | None = None  # of the width in use, once it has been asked for
        if carried:
            for one in self.quantizers.values():
                input_factor(one.qparams, self.widest.qparams)
        self.register_load_state_dict_post_hook(_after_loading)

    @property
    def soft(self) -> bool:
        """Whether something of any width is being learned."""
        return any(one.soft for one in self.quantizers.values())

    def use(self, num_bits: int) -> None:
        """See ``WidthSet.use``."""
        if num_bits != self.num_bits:
            super().use(num_bits)
            self._factor = None

    def factor(self) -> Tensor | float:
        """What the weight is to be multiplied by for the width in use; (1,) while it is learned."""
        if self.base is None:
            return 1.0
        if self.active.soft:
            return (self.active.scale[:1].double() / self.base[:1].double()).float()
        if self._factor is None:
            self._factor = self.active.scale[0].item() / self.base[0].item()
        return self._factor

    def carried(self) -> float:
        """The widest's scale in parts of that which the weight carries: 1 until it is learned."""
        if self.base is None:
            return 1.0
        return float(self.widest.scale[0].detach().double() / self.base[0].double())

    def learn(self, scale: Form | None = None, zero_point: bool = False,
              gradient_factor: bool = False, carrier: Any = None) -> None:
        """Lets gradients move the grid of the width in use; see ``ActivationQuantizer.learn``.

        Args:
            scale, zero_point, gradient_factor: As there.
            carrier: Not called: the layer multiplies its weight by ``factor``, so that other
                widths keep what they have.
        """
        if self.base is not None:
            carrier = _NotCalled()
        self.active.learn(scale, zero_point, gradient_factor, carrier)

    def harden(self) -> None:
        """Ends ``learn``, of all widths."""
        for one in self.quantizers.values():
            if one.soft:
                one.harden()
        self._factor = None

    def solutions(self) -> tuple[QParams | Log2Params, ...]:
        """Copies of what the widths stand for now, the widest first."""
        return tuple(one.solution() for one in reversed(self.quantizers.values()))

    def forward(self, x: Tensor) -> Tensor:
        """As the one in use."""
        return self.active(x)


def of_widths(quantizers: Sequence[Quantizer], carried: bool = False,
              ) -> Quantizer | ActivationQuantizerSet:
    """One quantizer as it is, several as a set; see ``ActivationQuantizerSet``."""
    return quantizers[0] if len(quantizers) == 1 else ActivationQuantizerSet(quantizers, carried)


def use_widths(quantizers: Mapping[str, Any], widths: Mapping[str, int | None]) -> None:
    """Switches quantizers of a place.

    Args:
        quantizers: By side, ``None`` for a float one.
        widths: By side; ``None`` leaves it as it is.

    Raises:
        ValueError: There is no such width; nothing has been switched then.
    """
    check_widths(quantizers, widths)
    for side, num_bits in widths.items():
        if num_bits is not None:
            quantizers[side].use(num_bits)


def check_widths(quantizers: Mapping[str, Any], widths: Mapping[str, int | None]) -> None:
    """Raises ``ValueError`` where ``use_widths`` would."""
    for side, num_bits in widths.items():
        if num_bits is not None and quantizers[side] is None:
            raise ValueError(f"num_bits={num_bits} is not possible for '{side}', which is in "
                             'float here.')
        if num_bits is not None:
            check_width(num_bits, quantizers[side].widths)


class _NotCalled:
    """A carrier that lets another carry."""

    def carry(self, growth: Any) -> None:
        """Nothing: see ``ActivationQuantizerSet.factor``."""


@torch.no_grad()
def _after_loading(quantizers: ActivationQuantizerSet, _: Any) -> None:
    """A hook: in a state that is loaded, the weight carries the widest's scale."""
    quantizers._factor = None
    if quantizers.base is not None:
        quantizers.base = quantizers.widest.scale.detach().clone()
