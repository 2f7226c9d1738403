"""Several widths of a layer of which the one in use is multiplied as bytes."""

from typing import Any

from torch import Tensor, nn

from mmbitsplit.models.layers.integer_devices import integer_weight, why_float_there
from mmbitsplit.models.layers.integer_weight import IntegerWeight, check_stays
from mmbitsplit.models.layers.quantizers import (
    ActivationQuantizer,
    ActivationQuantizerSet,
    WeightQuantizer,
    WeightQuantizerSet,
)
from mmbitsplit.models.layers.quantizers.learning import check_width


class IntegerWidths(nn.Module):
    """Stands in the place of a layer's weight quantizer, and answers as that does.

    Switching packs the codes of the width in use (``IntegerWeight``); those of the widest stay
    beside them, to make others of. A width that cannot is computed in float, and ``left`` says why.

    Args:
        kept: The layer's weight quantizer, for which ``why_never`` has no reason.
        inputs: That of its input; either or both have several widths.
        factor: See ``WeightQuantizer.weight``.
    """

    soft = False
    learning = None
    channels_last = False
    integer: IntegerWeight | None

    def __init__(self, kept: WeightQuantizerSet | WeightQuantizer,
                 inputs: ActivationQuantizerSet | ActivationQuantizer, factor: float):
        super().__init__()
        self.kept = kept
        # Not children: these are the layer's, and what is made of them is no state.
        self.__dict__.update(inputs=inputs, integer=None)
        self.left: str | None = None
        self._made_for: tuple[int, int, float] | None = None
        self.use(kept.num_bits, factor)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes that are kept and of what is multiplied by."""
        codes = [one.codes for one in getattr(self.kept, 'quantizers', {'': self.kept}).values()]
        return sum(value.numel() for value in codes if value is not None) + (
            0 if self.integer is None else self.integer.nbytes)

    def use(self, num_bits: int, factor: float | None = None) -> None:
        """See ``WeightQuantizerSet.use``; the input has been switched by now."""
        check_width(num_bits, self.kept.widths)
        factor = self._active.made_for if factor is None else factor
        wanted = num_bits, self.inputs.num_bits, factor
        if wanted == self._made_for:
            return
        if isinstance(self.kept, WeightQuantizerSet):
            self.kept.give_back()
            self.kept.switch(num_bits)
            self.kept.lend()
        quantizer, inputs = self._active, getattr(self.inputs, 'active', self.inputs)
        self.left = why_float_there(quantizer.geometry, quantizer.codes, inputs.qparams)
        made = None if self.left else integer_weight(quantizer, inputs, factor)
        self.__dict__['integer'] = made
        self.lay_out(self.channels_last)
        quantizer.made_for, self._made_for = factor, wanted
        if made is None:
            quantizer.refresh(factor)
        else:
            quantizer.give_room()
            if isinstance(self.kept, WeightQuantizerSet):
                self.kept.give_back()

    def lay_out(self, channels_last: bool) -> None:
        """See ``IntegerWeight.lay_out``."""
        self.channels_last = channels_last
        if self.integer is not None:
            self.integer.lay_out(channels_last)

    def product(self, x: Tensor) -> Tensor | None:
        """See ``IntegerWeight.product``."""
        return None if self.integer is None else self.integer.product(x)

    def plain(self) -> WeightQuantizerSet | WeightQuantizer:
        """The quantizer that it was made of, at the width in use."""
        self.kept.refresh()
        return self.kept

    @property
    def codes(self) -> Tensor:
        """See ``IntegerWeight``."""
        return self._active.codes if self.integer is None else self.integer.codes

    def weight(self, factor: float = 1.0) -> Tensor:
        """See ``IntegerWeight``."""
        return self.kept.weight(factor) if self.integer is None else self.integer.weight()

    @property
    def _active(self) -> WeightQuantizer:
        return getattr(self.kept, 'active', self.kept)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        check_stays(fn, self._active.scale)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'kept' not in self.__dict__.get('_modules', ()):
                raise
            return getattr(self.kept, name)
