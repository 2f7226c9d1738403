"""The float pass: one forward a batch, nothing kept but targets at the sampled positions."""

import time
from collections.abc import Callable, Container, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.models import PreparedModel, QuantizedLayer, layer_input
from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.models.watch.storages import odd_layout
from mmbitsplit.passes.call_counts import CallCounts, Stacks
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.selection_replay import in_a_recorded_call


@dataclass
class FloatRecord:
    """What the float pass leaves behind.

    Args:
        targets: By (layer, batch), one (G, M, K) a call: float outputs without bias.
        shapes: By (layer, batch), the input's shape of each call.
        counts: By batch, number of calls by layer name.
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


def float_pass(prepared: PreparedModel, batches: Mapping[int, Any], run: Callable[[Any], Any],
               sampler: Sampler, labels: Mapping[int, str], done: Container[str],
               enter: Callable[[int], None], progress: Callable[[int, int], None],
               state: ForwardState) -> FloatRecord:
    """Runs every batch through the float model.

    A target is copied from the layer's output at once: what comes after may change it in place.

    Args:
        prepared: The model, its layers still in float.
        batches: By number; one after another handed to ``run``.
        run: Runs the model on a batch.
        sampler: Positions.
        labels: What each batch is called in error messages.
        done: Layers solved already, whose targets nobody asks for.
        enter: Told the number of the batch that starts.
        progress: Told (batches done, batches in all).
        state: Told what forwards change.

    Raises:
        ValueError: A layer's input holds NaN or infinity; names layer and image. Or a layer is
            called from another thread.
    """
    record, calls = FloatRecord(), CallCounts()
    current: dict[str, Any] = {}
    seen, one_thread = set(), OneThread()

    def take(name: str, layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        one_thread.check(name)
        if in_a_recorded_call():
            raise ValueError(
                f"Layer '{name}' is called inside a method that a replay point names, which the "
                'quantized pass does not call again. Name a step without layers, or replay only '
                "what the method decides: ReplayPoint(owner, method, indices_only=True).")
        if name not in seen or current['first']:
            seen.add(name)
            current['look']()
        with state.ours.apart():
            record_call(name, layer, x, output)

    def record_call(name: str, layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        batch = current['batch']
        with sampler.stopwatch('sampling'):
            check_finite(name, x, labels[batch], 'float')
        counts = record.counts[batch]
        call = counts.get(name, 0)
        counts[name] = call + 1
        if name in done:
            return
        record.shapes.setdefault((name, batch), []).append(tuple(x.shape))
        record.targets.setdefault((name, batch), []).append(
            sampler.target(name, layer, call, batch, x.shape,
                           output.to(layer.weight.dtype)))  # of lower precision under autocast

    started, sampled_before = time.perf_counter(), sampler.stopwatch.seconds['sampling']
    with _taking(prepared, take), torch.no_grad():
        for step, (batch, data) in enumerate(batches.items()):
            record.counts[batch] = {}
            enter(batch)
            with calls.of(batch, prepared.model, prepared.layers), \
                    state.watched(batch) as look, one_thread.around():
                current.update(batch=batch, look=look, first=step == 0)
                run(data)
            progress(step + 1, len(batches))
    record.patterns = calls.patterns
    record.seconds_sampling = sampler.stopwatch.seconds['sampling'] - sampled_before
    record.seconds_forward = time.perf_counter() - started - record.seconds_sampling
    return record


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


@contextmanager
def _taking(prepared: PreparedModel,
            take: Callable[[str, QuantizedLayer, Tensor, Tensor], None]):
    """Calls ``take`` right after every call of every planned layer, before the user's hooks."""
    def hook_for(name: str):
        def hook(module, args, kwargs, output):
            take(name, module, layer_input(args, kwargs), output)
        return hook

    handles = [layer.register_forward_hook(hook_for(name), with_kwargs=True, prepend=True)
               for name, layer in prepared.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
