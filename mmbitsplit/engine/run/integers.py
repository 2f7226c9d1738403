"""Evaluates a quantized model with integers where they are exact, and says what was used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mmengine.logging import print_log
from torch import nn

from mmbitsplit.engine.run.map_order import may_be_channels_last
from mmbitsplit.models import quantized_layers, quantized_products, to_integer
from mmbitsplit.models.layers.integer_support import why_no_integers
from mmbitsplit.models.layers.integer_widths import IntegerWidths
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.surgery.integers import check_mode

IntegerMode = bool | Literal['auto']
WORDS: dict[str, IntegerMode] = {'auto': 'auto', 'on': True, 'off': False}  # of command lines
# What torch says where a model views a map in an order that channels last does not have.
_VIEWED = 'view size is not compatible'


def default_mode() -> IntegerMode:
    """How a quantized model is evaluated where nobody says: ``'auto'`` where torch multiplies
    bytes."""
    return 'auto' if why_no_integers() is None else False


@dataclass
class IntegerUse:
    """What of an evaluation was computed with integers.

    Args:
        asked: ``True``, ``False`` or ``'auto'``.
        layers: Names of the layers and products of activations that were.
        left: Quantized ones that were not, each with the reason.
    """

    asked: IntegerMode
    layers: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    _last: bool = False
    _may_change: dict[str, Product | IntegerWidths] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for ``results.json``."""
        return {'asked': self.asked, 'layers': len(self.layers), 'left': dict(self.left)}

    def start(self, model: nn.Module) -> None:
        """Lets a model's layers and products multiply bytes."""
        self._last = may_be_channels_last(model)
        done = to_integer(model, self.asked, self._last)
        self.layers, self.left = list(done.integer), dict(done.left)
        self._may_change = {name: product for name, product in quantized_products(model)
                            if product.integers}
        self._may_change.update(
            (name, layer.weight_quantizer) for name, layer in quantized_layers(model)
            if isinstance(layer.weight_quantizer, IntegerWidths))
        if self.layers:
            several = ' and products' if any(True for _ in quantized_products(model)) else ''
            print_log(f'mmbitsplit: {len(self.layers)} of {len(self.layers) + len(self.left)} '
                      f'quantized layers{several} are computed with integers; --integer off '
                      "(integer=False) gives the last digits of upstream's tools, which compute "
                      'in float', logger='current')

    def call(self, model: nn.Module, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the model; in float from now on where ``'auto'`` and integers fail.

        Args:
            model: Whose layers multiply bytes.
            step: A method of it.
            args, kwargs: Of the call.
        """
        try:
            found = step(*args, **kwargs)
            self._note_changes()
            return found
        except RuntimeError as error:
            if self._last and _VIEWED in str(error):
                self._last = False
                to_integer(model, self.asked)
                return self.call(model, step, *args, **kwargs)
            if self.asked != 'auto' or not self.layers:
                raise
            reason = str(error).partition('\n')[0]
        to_integer(model, False)
        found = step(*args, **kwargs)  # an error that is not of integers comes again
        print_log(f'mmbitsplit: computed in float: {reason}', logger='current', level=30)
        self.left.update(dict.fromkeys(self.layers, reason))
        self.layers, self._may_change = [], {}
        return found

    def _note_changes(self) -> None:
        """Products say what they are computed with once they have met their matrices, layers of
        several widths once they are switched."""
        for name, part in self._may_change.items():
            if part.left is not None:
                self.left[name] = part.left
                if name in self.layers:
                    self.layers.remove(name)
            elif name in self.left:
                del self.left[name]
                self.layers.append(name)


@contextmanager
def evaluated_with_integers(model: nn.Module, asked: IntegerMode) -> Iterator[IntegerUse]:
    """Inside, ``model.test_step`` multiplies bytes; afterwards the model is as before.

    Args:
        model: Quantized, or float, which stays so.
        asked: See ``models.to_integer``; ``True`` is for quantized models.
    """
    check_mode(asked)
    use = IntegerUse(asked)
    if not asked:
        yield use
        return
    layers = [layer for _, layer in quantized_layers(model)]
    before = [(layer.weight_quantizer, layer.channels_last) for layer in layers]
    products = [(product, product.integers) for _, product in quantized_products(model)]
    use.start(model)
    own, step = vars(model).get('test_step'), model.test_step
    model.test_step = lambda *args, **kwargs: use.call(model, step, *args, **kwargs)
    try:
        yield use
    finally:
        del model.test_step
        if own is not None:
            model.test_step = own
        for layer, (quantizer, last) in zip(layers, before):  # the very same: others may hold it
            if isinstance(layer.weight_quantizer, IntegerWidths):
                layer.weight_quantizer.plain()
            layer.weight_quantizer, layer.channels_last = quantizer, last
        for product, integers in products:
            product.integers = integers
