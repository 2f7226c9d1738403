"""Knows, while a model runs, which tensors depend on its input and which on its weights alone."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmbitsplit.models.watch.storages import storage_of

_PRODUCTS = re.compile(r'::(mm|addmm|bmm|baddbmm|matmul|linear|einsum|convolution|bilinear'
                       r'|dot|mv|_?scaled_dot_product\w*)$')
_KEEPS_SOFTMAX = re.compile(r'::(_to_copy|to|clone|contiguous)$')


class Dependence(TorchDispatchMode):
    """Carries along with every tensor whether it depends on the input.

    What is made of parameters, buffers and numbers alone does not; anything else does.

    Args:
        model: Whose parameters and buffers they are.
        product: Told the name of every operation that multiplies something that does.
    """

    def __init__(self, model: nn.Module, product: Callable[[str], None]):
        super().__init__()
        self.product = product
        self._depends = {storage_of(value): False for value in (
            *model.parameters(), *model.buffers())}
        self._softmax: set[Any] = set()

    def take_in(self, tensors: Iterable[Tensor]) -> None:
        """These are inputs."""
        self._depends.update({storage_of(tensor): True for tensor in tensors})

    def on_input(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input."""
        return self._depends.get(storage_of(tensor), True)

    def from_softmax(self, tensor: Tensor) -> bool:
        """Whether a tensor is what a softmax has given."""
        return storage_of(tensor) in self._softmax

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.name().split('.')[0]
        depends = any(self.on_input(tensor) for tensor in inputs)
        if depends and _PRODUCTS.search(name):
            self.product(name)
        softmax = 'softmax' in name or (_KEEPS_SOFTMAX.search(name) is not None
                                        and self.from_softmax(inputs[0]))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = storage_of(tensor)
                self._depends[storage] = depends or self._depends.get(storage, False)
                if softmax:
                    self._softmax.add(storage)
        return out
