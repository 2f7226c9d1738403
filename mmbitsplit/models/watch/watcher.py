"""Sees one run of a model for ``watch``.

Nothing is traced or rewritten. A dispatch mode sees every operation and carries, for each
tensor storage, the set of nearest layers upstream; module hooks tell which layer is running.
"""

import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmbitsplit.models.layers.geometry import is_replaced, layer_kind
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.watch.carried import tensors_in
from mmbitsplit.models.watch.data_flow import IMAGE, DataFlow
from mmbitsplit.models.watch.layer_calls import LayerCalls
from mmbitsplit.models.watch.module_calls import ModuleCallWatch
from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.models.watch.output_readers import OPERATION, RETURNED, ReaderWatch
from mmbitsplit.models.watch.product_calls import ProductCalls, product_inputs
from mmbitsplit.models.watch.selections import SelectionWatch
from mmbitsplit.models.watch.storages import (
    carries_values,
    odd_layout,
    storage_bytes,
    storage_of,
)
from mmbitsplit.models.watch.weight_reads import WeightReads, is_product


class Watcher(TorchDispatchMode):
    """Sees one run; see ``watch_model.watch``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.flow, self.readers = DataFlow(), ReaderWatch()
        self.weight_reads, self.one_thread = WeightReads(model), OneThread()
        self.flow.read_elsewhere = self.weight_reads.elsewhere
        self.flow.also_read = self.weight_reads.also_read
        self.selections = SelectionWatch(model)
        self.flow.readings, self.flow.selections = self.readers.readings, self.selections.found
        self.calls = LayerCalls(self.flow.inside, self.flow.unlike_torch, self.flow.norm_steps)
        # By storage: the nearest layers upstream, and the layer that made it with its output.
        self.sources: dict[StorageWeakRef, set[str]] = {}
        self.produced: dict[StorageWeakRef, tuple[str, weakref.ref[Tensor]]] = {}
        self.made: dict[StorageWeakRef, int] = {}  # bytes of what the run made
        self.weights = {storage_of(p) for p in model.parameters() if p.dim() > 1}
        self.normed: dict[StorageWeakRef, str] = {}  # batch norms whose input may live on
        self.inside: list[str] = []  # layers and norms now running
        self.blinded = self.replayed = 0
        self.stack: list[tuple[str, int]] = []
        self.numbers: dict[str, int] = {}  # of calls, by module
        self.module_calls = ModuleCallWatch(model)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.operation(func, args, kwargs, out)
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        outputs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        if not self.inside:  # behind a barrier too: what is read there must not change
            self.readers.operation(func, inputs, outputs)
        self.module_calls.operation(func, inputs, outputs)
        self.weight_reads.operation(func, args, inputs, self._known,
                                    self.stack[-1][0] if self.stack else '')
        if not self.blinded:
            self._see(func, inputs, outputs)
        return out

    def _see(self, func: Callable, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if not self.inside:
            for tensor in inputs:
                made = self.produced.get(storage_of(tensor))
                if made is not None:
                    self.flow.consumers[made[0]].add('operation')
        merged = set().union(*(self._of(t) for t in inputs)) if inputs else set()
        if IMAGE in merged and self._is_layer(func, inputs):
            merged = merged - {IMAGE} | {self.stack[-1][0] if self.stack else ''}
        if not self.inside and not self.replayed:
            self.selections.operation(func, inputs, outputs, merged - {IMAGE},
                                      self.stack[-1][0] if self.stack else '')
        if not outputs:  # a number was read
            self.flow.deciding |= merged
            for storage, norm in self.normed.items():
                if not storage.expired():  # on other images, it may be read after its norm
                    self.flow.norm_after[norm] = None
        for tensor in outputs:
            storage = storage_of(tensor)
            if not carries_values(tensor):
                # An index or a mask is no activation, but token numbers and pixels are inputs.
                self.sources[storage] = {IMAGE} if merged == {IMAGE} else set()
                self.flow.deciding |= merged
            else:
                self.sources[storage] = set(merged)
            if storage not in self.made and not any(
                    storage == storage_of(tensor) for tensor in inputs):
                self.made[storage] = storage_bytes(tensor)
                self.flow.peak_bytes = max(self.flow.peak_bytes, sum(self._live_blocks()))

    def _is_layer(self, func: Callable, inputs: list[Tensor]) -> bool:
        """Whether an operation multiplies by a weight of the model or looks up in it."""
        return is_product(func.name()) and any(
            storage_of(tensor) in self.weights for tensor in inputs)

    def _known(self, tensor: Tensor) -> bool:
        """Whether a tensor is the model's input, or was made in the run."""
        return storage_of(tensor) in self.made or bool(self.sources.get(storage_of(tensor)))

    def _of(self, tensor: Tensor) -> set[str]:
        return self.sources.get(storage_of(tensor), set()) if tensor.numel() else set()

    @contextmanager
    def blind(self, only_selections: bool = False):
        """Inside, operations are not seen and their results have no sources.

        Args:
            only_selections: Operations are seen, selections are not.
        """
        self.blinded, self.replayed = (self.blinded + (not only_selections),
                                       self.replayed + only_selections)
        try:
            yield
        finally:
            self.blinded, self.replayed = (self.blinded - (not only_selections),
                                           self.replayed - only_selections)

    @contextmanager
    def replayed_step(self, only_selections: bool = False):
        """As ``blind``, for a step whose result is replayed."""
        self.module_calls.replayed()
        with self.blind(only_selections):
            yield

    @contextmanager
    def _looking(self):
        """Inside, operations are the watcher's own."""
        with self.blind(), self.module_calls.paused():
            yield

    @contextmanager
    def hooks(self):
        handles = [self.model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
                   self.model.register_forward_hook(self._leave_model)]
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._push(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._pop(name), always_call=True))
        for name, module in self.model.named_modules():
            if is_replaced(module):  # before hooks of the user's, which may change the output
                handles.append(module.register_forward_hook(self.calls.close, prepend=True))
            if layer_kind(module) is not None:
                handles.append(module.register_forward_pre_hook(
                    self._enter_layer(name), with_kwargs=True))
                handles.append(module.register_forward_hook(
                    self._leave_layer(name), with_kwargs=True))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(
                    self._enter_norm(name), with_kwargs=True))
                handles.append(module.register_forward_hook(
                    self._leave_norm(name), with_kwargs=True))
            elif isinstance(module, Product):
                handles.append(module.register_forward_pre_hook(self._enter_product(name)))
                handles.append(module.register_forward_hook(
                    self._leave_product(name), with_kwargs=True))
            elif isinstance(module, nn.Embedding):
                handles.append(module.register_forward_hook(self._looked_up(name)))
            elif not any(True for _ in module.children()):
                # A leaf may be a custom kernel that no dispatch mode sees.
                handles.append(module.register_forward_hook(self._leave_leaf))
        handles += self.weight_reads.hooks()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter_model(self, module, args, kwargs):
        self.take_in((args, kwargs))

    def _leave_model(self, module, args, output):
        self.hand_out(output)

    def take_in(self, value: Any) -> None:
        """Tensors in a value that come from no layer are the model's input."""
        tensors = tensors_in(value)
        self.module_calls.take_in(tensors)
        for tensor in tensors:
            if not self._of(tensor):
                self.sources[storage_of(tensor)] = {IMAGE}

    def hand_out(self, value: Any) -> None:
        """Tensors in a value are the model's output."""
        tensors = tensors_in(value)
        self.readers.read(RETURNED, tensors)
        self.module_calls.hand_out(tensors)
        for tensor in tensors:
            if storage_of(tensor) in self.produced:
                self.flow.consumers[self.produced[storage_of(tensor)][0]].add('output')

    def _push(self, name: str):
        def hook(module, args, kwargs):
            self.numbers[name] = self.numbers.get(name, 0) + 1
            self.stack.append((name, self.numbers[name]))
            self.module_calls.enter(name, args, kwargs)
        return hook

    def _pop(self, name: str):
        def hook(module, args, output):
            self.stack.pop()
            self.module_calls.leave(output)
            if any(True for _ in module.children()):
                self.flow.returned.setdefault(name, set()).update(
                    *(self._of(tensor) for tensor in tensors_in(output)))
        return hook

    def _live_blocks(self) -> list[int]:
        """Bytes of each tensor that the run made and still holds."""
        self.made = {storage: size for storage, size in self.made.items()
                     if not storage.expired()}
        return list(self.made.values())

    def _enter_site(self, name: str) -> None:
        """A layer or product is called: what is known of both."""
        flow = self.flow
        if name not in flow.calls:
            flow.sites.append(name)
        flow.calls[name] = flow.calls.get(name, 0) + 1
        flow.stacks.setdefault(name, []).append(tuple(self.stack[:-1]))
        flow.live_blocks[name] = max(flow.live_blocks.get(name, []), self._live_blocks(), key=sum)

    def _enter_product(self, name: str):
        def hook(module, args):
            self.one_thread.check(name)
            self._enter_site(name)
        return hook

    def _leave_product(self, name: str):
        def hook(module, args, kwargs, output):
            with self._looking():
                self.flow.products.setdefault(name, ProductCalls()).add(
                    *product_inputs(args, kwargs), output)
            self.flow.output_sizes.setdefault(name, []).append(output.numel())
        return hook

    def _enter_layer(self, name: str):
        def hook(module, args, kwargs):
            self.one_thread.check(name)
            flow, x = self.flow, layer_input(args, kwargs)
            if name not in flow.calls:
                flow.order.append(name)
                flow.consumers[name] = set()
            self._enter_site(name)
            sources = self._of(x)
            flow.sources.setdefault(name, set()).update(sources)
            if sources == {IMAGE}:
                flow.fed_by_image.add(name)
            for source in sources - {IMAGE}:
                flow.feeds.setdefault(source, set()).add(name)
            made = self.produced.get(storage_of(x))
            if made is not None and not self.inside:
                flow.consumers[made[0]].add(name)
            if not self.inside:
                self.readers.read(name, [x])
                self.selections.reached(name, x)
            self.inside.append(name)
            self.calls.enter(module, x)
        return hook

    def _leave_layer(self, name: str):
        def hook(module, args, kwargs, output):
            x = layer_input(args, kwargs)
            if odd_layout(x):
                self.flow.unlike_torch[name] = f'its input is a {odd_layout(x)} tensor' + (
                    ' (nn.TransformerEncoder(..., enable_nested_tensor=False) makes none)'
                    if odd_layout(x) == 'nested' else '')
            with self._looking():
                self.calls.leave_layer(name, module, args, kwargs, x, output)
            self.inside.pop()
            self.readers.made(name, output, self.calls.after(name))
            self.sources[storage_of(output)] = {name}
            self.produced[storage_of(output)] = (name, weakref.ref(output))
            self.flow.output_sizes.setdefault(name, []).append(output.numel())
            self.flow.input_sizes.setdefault(name, []).append(x.numel())
            self.flow.output_rows.setdefault(name, []).append(
                output.size(0) if output.dim() else 1)  # a nested tensor has no shape
        return hook

    def _enter_norm(self, name: str):
        def hook(module, args, kwargs):
            x = layer_input(args, kwargs)
            made = self.produced.get(storage_of(x))
            producer = made[0] if made is not None and x is made[1]() else None
            if producer is not None and not self._channels_agree(producer, x):
                producer = None
            if self.flow.norm_after.setdefault(name, producer) != producer:
                self.flow.norm_after[name] = None
            if made is not None:
                self.flow.consumers[made[0]].add(name)
            self.readers.read(name, [x])
            self.flow.norm_calls[name] = self.flow.norm_calls.get(name, 0) + 1
            self.inside.append(name)
            self.calls.enter(module, x)
        return hook

    def _channels_agree(self, producer: str, x: Tensor) -> bool:
        """Whether dimension 1, the channels of a batch norm, are the layer's outputs."""
        linear = layer_kind(self.model.get_submodule(producer)) == 'linear'
        return x.dim() == (2 if linear else 4)

    def _leave_norm(self, name: str):
        def hook(module, args, kwargs, output):
            with self._looking():
                if not self.calls.leave_norm(name, module, layer_input(args, kwargs), output):
                    self.flow.norm_after[name] = None
            self.normed[storage_of(layer_input(args, kwargs))] = name
            self.inside.pop()
            self.readers.made(name, output, self.calls.after(name))
        return hook

    def _looked_up(self, name: str):
        def hook(module, args, output):
            if name not in self.flow.embeddings:
                self.flow.embeddings.append(name)
            self._leave_leaf(module, args, output)
        return hook

    def _leave_leaf(self, module, args, output):
        inputs, outputs = tensors_in(args), tensors_in(output)
        if not self.inside and any(t.numel() and not self._of(t) for t in outputs):
            self.readers.read(OPERATION, inputs)
        if self.blinded:
            return
        merged = set().union(*(self._of(t) for t in inputs), set())
        for tensor in outputs:
            if carries_values(tensor) and not self._of(tensor):
                self.sources[storage_of(tensor)] = set(merged)


def layer_input(args: tuple, kwargs: dict) -> Tensor:
    """Returns the input of a layer call, given by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))
