"""Watches a run of a model whose layers are quantized: which run, and whose output feeds whom."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmbitsplit.models.surgery.install import quantized_layers
from mmbitsplit.models.watch.data_flow import IMAGE, DataFlow
from mmbitsplit.models.watch.storages import storage_of
from mmbitsplit.models.watch.watch_model import watched_by
from mmbitsplit.models.watch.watcher import Watcher, layer_input


def watch_quantized(model: nn.Module, run: Callable[[], Any], *, inputs: Any = None,
                    barriers: Iterable[Any] = ()) -> DataFlow:
    """Runs a quantized model once and reports its calls; see ``watch``.

    Of its layers ``order``, ``calls``, ``sources``, ``feeds`` and sizes are known, of modules
    their calls. What a float layer shows beyond that (norms, steps, readings) is not looked at:
    nothing is left to be decided by it.
    """
    return watched_by(_QuantizedWatcher(model), run, inputs, barriers)


class _QuantizedWatcher(Watcher):

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with super().hooks():
            handles = []
            for name, _ in quantized_layers(self.model):
                module = self.model.get_submodule(name)  # with its steps, where it has any
                handles += [
                    module.register_forward_pre_hook(self._enter(name), with_kwargs=True),
                    module.register_forward_hook(self._leave(name), with_kwargs=True)]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            flow, sources = self.flow, self._of(layer_input(args, kwargs))
            if name not in flow.calls:
                flow.order.append(name)
            self._enter_site(name)
            flow.sources.setdefault(name, set()).update(sources)
            if sources == {IMAGE}:
                flow.fed_by_image.add(name)
            for source in sources - {IMAGE}:
                flow.feeds.setdefault(source, set()).add(name)
            self.inside.append(name)
        return hook

    def _leave(self, name: str) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self.inside.pop()
            self.sources[storage_of(output)] = {name}
            self.flow.output_sizes.setdefault(name, []).append(output.numel())
            self.flow.input_sizes.setdefault(name, []).append(layer_input(args, kwargs).numel())
        return hook
