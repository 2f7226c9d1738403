"""Watches who reads weights: layers that others read into, and weights that belong to no module.

A quantized layer shows its weight and bias, dequantized, to whoever reads them. That serves a
parent that takes the norm of a weight. Where something besides the layer's own call multiplies by
it (a functional call in another module, ``layer.forward(x)`` in place of ``layer(x)``), writes to
it, or reads what a quantized layer has not got, the layer must stay as it is.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmbitsplit.models.layers.geometry import is_replaced, layer_kind
from mmbitsplit.models.watch.storages import storage_of

# Products that a layer comes down to, and which of their arguments is the weight.
_WEIGHT_ARGUMENT = {'convolution': 1, '_convolution': 1, 'linear': 1, 'mm': 1, 'addmm': 2}
# Operations that do what a layer does where one of their inputs is a weight.
_PRODUCTS = re.compile(r'conv|mm|mv|linear|embedding|rnn|lstm|gru|attention|transformer|dot')


def is_product(name: str) -> bool:
    """Whether an operation of torch multiplies matrices, or looks rows of one up."""
    return _PRODUCTS.search(name) is not None


@dataclass(frozen=True)
class ForeignWeight:
    """A weight that the model multiplies by and that none of its modules holds.

    Args:
        operation: What multiplies by it, such as ``'convolution'``.
        inside: Name of the module that does so.
        num_weights: How many there are.
    """

    operation: str
    inside: str
    num_weights: int


class WeightReads:
    """Told every operation of a run.

    Args:
        model: The watched model.

    Attributes:
        elsewhere: By layer, embedding or batch norm, an operation outside of its calls that read
            its weight, bias or statistics, and for which it must stay as it is.
        also_read: Of the other layers, an operation outside of their calls that read their weight
            or bias.
        foreign: Weights of no module, in the order they were met.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.elsewhere: dict[str, str] = {}
        self.also_read: dict[str, str] = {}
        self._foreign: dict[Any, ForeignWeight] = {}
        self._running: list[str] = []
        # By storage: modules whose calls may read it, as one tensor may be held by several (tied
        # weights) and a layer may have modules inside; and those that could be quantized or folded.
        self._readers: dict[Any, set[str]] = {}
        self._layers: dict[Any, set[str]] = {}
        self._shown: set[tuple[Any, str]] = set()  # by storage and layer, weights and biases
        for name, module in model.named_modules():
            changes = is_replaced(module) or isinstance(module, nn.Embedding)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            for tensor in own if not changes else (*module.parameters(), *module.buffers()):
                self._readers.setdefault(storage_of(tensor), set()).add(name)
            for tensor in own if changes else ():
                self._layers.setdefault(storage_of(tensor), set()).add(name)
            if layer_kind(module) is not None:
                self._shown |= {(storage_of(module._parameters[which]), name)
                                for which in ('weight', 'bias')
                                if module._parameters.get(which) is not None}

    @property
    def foreign(self) -> list[ForeignWeight]:
        """See the class."""
        return list(self._foreign.values())

    def hooks(self) -> Iterable[RemovableHandle]:
        """Tells which modules run; to be registered after all others.

        They stand around other hooks of a module: those that compute a weight from its parts
        (weight norm) are part of its call.
        """
        holders = set().union(*self._readers.values())
        for name, module in self.model.named_modules():
            if name in holders:
                yield module.register_forward_pre_hook(self._enter(name), prepend=True)
                yield module.register_forward_hook(self._leave, always_call=True)

    def operation(self, function: Callable, args: Sequence[Any], inputs: Sequence[Tensor],
                  known: Callable[[Tensor], bool], inside: str) -> None:
        """An operation was run.

        Args:
            function: An operator of torch.
            args: Its arguments by position.
            inputs: The tensors among all of them.
            known: Whether a tensor came from the model's input or was made in the run.
            inside: Name of the module that runs.
        """
        if function.is_view:  # what is done with the view is seen
            return
        name = function.name().split('::')[-1].split('.')[0]
        for tensor in inputs:
            storage = storage_of(tensor)
            if storage in self._layers and not self._readers[storage] & set(self._running):
                for layer in self._layers[storage]:
                    self._read(layer, storage, name, function)
        index = _WEIGHT_ARGUMENT.get(name)
        if index is None or self._running or index >= len(args):
            return
        weight, storage = args[index], storage_of(args[index])
        if weight.dtype.is_floating_point and storage not in self._readers and not known(weight):
            self._foreign.setdefault(storage, ForeignWeight(name, inside, weight.numel()))

    def _read(self, layer: str, storage: Any, name: str, function: Callable) -> None:
        if (storage, layer) in self._shown and not is_product(name) \
                and not function._schema.is_mutable:
            if layer not in self.elsewhere:
                self.also_read.setdefault(layer, name)
            return
        self.elsewhere.setdefault(layer, name)
        self.also_read.pop(layer, None)

    def _enter(self, name: str):
        def hook(module, args):
            self._running.append(name)
        return hook

    def _leave(self, module, args, output):
        self._running.pop()
