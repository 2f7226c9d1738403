"""The float pass: one forward a batch, nothing kept but targets at the sampled positions."""

import time
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.models import PreparedModel, QuantizedLayer, layer_input
from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.models.watch.storages import odd_layout
from mmbitsplit.passes.call_counts import CallCounts, Stacks
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.hooks import hooked
from mmbitsplit.passes.selection_replay import in_a_recorded_call


@dataclass
class FloatRecord:
    """What the float pass leaves behind.

    Args:
        targets: By (layer, batch), one (G, M, K) a call: float outputs without bias.
        shapes: By (layer, batch), the input's shape of each call.
        counts: By batch, number of calls by the name of a layer or product.
        patterns: See ``call_counts.CallCounts``.
        seconds_forward: Time of the forwards alone, s.
        seconds_sampling: Time spent on targets, s.
    """

    targets: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    shapes: dict[tuple[str, int], list[tuple[int, ...]]] = field(default_factory=dict)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    patterns: list[Stacks] = field(default_factory=list)
    seconds_forward: float = 0.0
    seconds_sampling: float = 0.0

    def count(self, name: str, batch: int) -> int:
        """Counts a call of a layer or product; returns how many there were before."""
        calls = self.counts[batch].get(name, 0)
        self.counts[batch][name] = calls + 1
        return calls

    def add_call(self, name: str, layer: QuantizedLayer, batch: int, x: Tensor, output: Tensor,
                 sampler: Sampler | None) -> None:
        """Counts a call of a layer; keeps its outputs at the sampled positions, if there are any.

        Args:
            name, layer: Which layer.
            batch: Number of the batch.
            x, output: Of the call.
            sampler: Positions; ``None`` where nobody asks for them.
        """
        call = self.count(name, batch)
        if sampler is None:
            return
        self.shapes.setdefault((name, batch), []).append(tuple(x.shape))
        self.targets.setdefault((name, batch), []).append(
            sampler.target(name, layer, call, batch, x.shape,
                           output.to(layer.product_weight.dtype)))  # autocast gives less


def float_pass(prepared: PreparedModel, forwards: Forwards, sampler: Sampler,
               done: Container[str], progress: Callable[[int, int], None]) -> FloatRecord:
    """Runs every batch through the float model.

    A target is copied from the layer's output at once: what comes after may change it in place.

    Args:
        prepared: The model, its layers still in float.
        forwards: Of the model.
        sampler: Positions.
        done: Layers solved already, whose targets nobody asks for.
        progress: Told (batches done, batches in all).

    Raises:
        ValueError: A layer's input holds NaN or infinity; names layer and image. Or a layer is
            called from another thread.
    """
    state, record, calls = forwards.state, FloatRecord(), CallCounts()
    seen, one_thread, first = set(), OneThread(), next(iter(forwards.batches), None)

    def meet(name: str) -> None:
        one_thread.check(name)
        check_called_again(name)
        if name not in seen or state.batch == first:
            seen.add(name)
            state.look()

    def count(name: str) -> Callable[..., None]:
        def hook(module, args, output) -> None:
            meet(name)
            record.count(name, state.current_batch())
        return hook

    def take(name: str, layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        meet(name)
        with state.ours.apart():
            with sampler.stopwatch('sampling'):
                check_finite(name, x, forwards.labels[state.current_batch()], 'float')
            record.add_call(name, layer, state.current_batch(), x, output,
                            None if name in done else sampler)

    started, sampled_before = time.perf_counter(), sampler.stopwatch.seconds['sampling']
    with taking(prepared.layers, take), hooked(prepared.products.items(), count), torch.no_grad():
        for step, batch in enumerate(forwards.batches):
            record.counts[batch] = {}
            with calls.of(batch, prepared.model, prepared.sites), state.watched(batch), \
                    one_thread.around():
                forwards.run(batch)
            progress(step + 1, len(forwards.batches))
    record.patterns = calls.patterns
    record.seconds_sampling = sampler.stopwatch.seconds['sampling'] - sampled_before
    record.seconds_forward = time.perf_counter() - started - record.seconds_sampling
    return record


def check_called_again(name: str) -> None:
    """Raises ``ValueError`` for a layer inside a call that is not made again."""
    if in_a_recorded_call():
        raise ValueError(
            f"Layer '{name}' is called inside a method that a replay point names, which the "
            'quantized pass does not call again. Name a step without layers, or replay only '
            "what the method decides: ReplayPoint(owner, method, indices_only=True).")


def check_finite(name: str, x: Tensor, label: str, which: str) -> None:
    """Raises ``ValueError`` naming layer and image when ``x`` holds NaN or infinity.

    Likewise where it is sparse or nested, which it was not while the model was watched.
    """
    odd = odd_layout(x)
    if odd is not None:
        raise ValueError(f"Layer '{name}' gets a {odd} tensor on {label}, and ordinary ones on "
                         'other batches. Leave it in float with '
                         f"overrides=[dict(match='{name}', skip=True)].")
    # One pass and no mask: a sum of finite float32 values of a network does not overflow.
    if x.numel() and not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"Layer '{name}' gets {bad} of {x.numel()} inputs that are NaN or infinite in the "
            f'{which} model, on {label}. Check the checkpoint (does the float model evaluate '
            'well?) and that image.')


def taking(layers: Mapping[str, QuantizedLayer],
           take: Callable[[str, QuantizedLayer, Tensor, Tensor], None],
           ) -> AbstractContextManager[None]:
    """Calls ``take`` right after every call of the layers, before the user's hooks.

    Args:
        layers: By name.
        take: Given name, layer, input and output.
    """
    def hook_for(name: str):
        def hook(module, args, kwargs, output):
            take(name, module, layer_input(args, kwargs), output)
        return hook
    return hooked(layers.items(), hook_for, with_kwargs=True, prepend=True)
