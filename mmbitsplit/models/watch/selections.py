"""Watches for selections: steps that pick and order rows by values of layers, such as a top-k.

The quantized model may pick other rows than the float model. Where they have the same number,
nothing fails, but what layers after it get no longer belongs to the float outputs they are
fitted to.
"""

import sys
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mmbitsplit.models.watch.storages import carries_values, storage_of
from mmbitsplit.structures import Selection

NUMBER = 'a number read by Python'
_NAMES = {'to_copy': 'conversion to integers'}  # where torch's own name says little
# Operations that take or put rows by an index or a mask.
_PICKING = ('index', 'gather', 'take', 'masked_select', 'masked_scatter', 'scatter', 'embedding')
_ORDERING = ('topk', 'sort')  # return values in an order that other values decide
_CHECKS = ('isnan', 'isinf', 'isfinite', 'isposinf', 'isneginf')


class SelectionWatch:
    """Follows decisions from the layers whose values make them to the layers they reach.

    Attributes:
        found: By selection, the first layers that it reaches, in the order of their calls.
    """

    def __init__(self, model: nn.Module):
        self.found: dict[Selection, list[str]] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        # By storage: of an index or a mask, what decided it; of values, what they were picked by.
        self._decided: dict[StorageWeakRef, frozenset[Selection]] = {}
        self._read: set[Selection] = set()  # numbers, until a layer comes

    def operation(self, function: Callable, inputs: list[Tensor], outputs: list[Tensor],
                  layers: Iterable[str], module: str) -> None:
        """An operation outside of layers was run.

        Args:
            function: Of torch's dispatcher.
            inputs, outputs: Its tensors.
            layers: Whose values it sees without another layer between.
            module: The innermost module that is running.
        """
        name = function.name().split('::')[-1].split('.')[0].strip('_')
        indices, values = (frozenset().union(*(
            self._decided.get(storage_of(tensor), frozenset()) for tensor in inputs
            if carries_values(tensor) == floating)) for floating in (False, True))
        new = frozenset()
        decides = not outputs or not all(carries_values(tensor) for tensor in outputs)
        if layers and decides and name not in _CHECKS:
            new = frozenset([self._here(_NAMES.get(name, name) if outputs else NUMBER, module)])
        if not outputs:
            self._read |= new | indices
        picks = name.startswith(_PICKING) and not (  # y[y < 0] = 0 only masks
            name.startswith('index_put') and inputs[-1].numel() == 1)
        picked = values | (indices if picks else frozenset()) \
            | (new if name in _ORDERING else frozenset())
        for tensor in outputs:
            self._decided[storage_of(tensor)] = \
                picked if carries_values(tensor) else indices | new

    def reached(self, layer: str, x: Tensor) -> None:
        """A layer was called with an input."""
        for selection in (*self._decided.get(storage_of(x), ()), *self._read):
            layers = self.found.setdefault(selection, [])
            if layer not in layers:
                layers.append(layer)
        self._read.clear()

    def _here(self, operation: str, module: str) -> Selection:
        """Names the method of the model that is running."""
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get('self')
            if isinstance(owner, nn.Module) and id(owner) in self._names \
                    and not frame.f_code.co_name.startswith('<') \
                    and not frame.f_globals.get('__name__', '').startswith('torch.'):
                return Selection(operation, self._names[id(owner)], frame.f_code.co_name)
            frame = frame.f_back
        return Selection(operation, module, 'forward')
