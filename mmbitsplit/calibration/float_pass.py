"""The float pass: one forward a batch, nothing kept but targets at the sampled positions."""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.calibration.capture import Sampler
from mmbitsplit.models import PreparedModel, QuantizedLayer, layer_input


@dataclass
class FloatRecord:
    """What the float pass leaves behind.

    Args:
        targets: By (layer, batch), one (G, M, K) a call: float outputs without bias.
        shapes: By (layer, batch), the input's shape of each call.
        counts: By batch, number of calls by layer name.
        seconds_forward: Time of the forwards alone, s.
        seconds_capture: Time spent on targets, s.
    """

    targets: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    shapes: dict[tuple[str, int], list[tuple[int, ...]]] = field(default_factory=dict)
    counts: list[dict[str, int]] = field(default_factory=list)
    seconds_forward: float = 0.0
    seconds_capture: float = 0.0


def float_pass(prepared: PreparedModel, batches: Sequence[Any], run: Callable[[Any], Any],
               sampler: Sampler, labels: Sequence[str], enter: Callable[[int], None],
               progress: Callable[[int, int], None]) -> FloatRecord:
    """Runs every batch through the float model.

    Targets are computed from the float input and the float weight: a captured output may be
    changed in place by what comes after.

    Args:
        prepared: The model, its layers still in float.
        batches: One after another, handed to ``run``.
        run: Runs the model on a batch.
        sampler: Positions.
        labels: What each batch is called in error messages.
        enter: Told the index of the batch that starts.
        progress: Told (batches done, batches in all).

    Raises:
        ValueError: A layer's input holds NaN or infinity; names layer and image.
    """
    record = FloatRecord()
    current = {'batch': 0}

    def take(name: str, layer: QuantizedLayer, x: Tensor) -> None:
        started = time.perf_counter()
        batch = current['batch']
        check_finite(name, x, labels[batch], 'float')
        counts = record.counts[batch]
        call = counts.get(name, 0)
        counts[name] = call + 1
        record.shapes.setdefault((name, batch), []).append(tuple(x.shape))
        patches = sampler.patches(name, layer, call, batch, x)
        record.targets.setdefault((name, batch), []).append(layer.float_rows() @ patches)
        record.seconds_capture += time.perf_counter() - started

    with _taking(prepared, take), torch.no_grad():
        for batch, data in enumerate(batches):
            current['batch'] = batch
            record.counts.append({})
            enter(batch)
            captured = record.seconds_capture
            started = time.perf_counter()
            run(data)
            record.seconds_forward += (time.perf_counter() - started
                                       - (record.seconds_capture - captured))
            progress(batch + 1, len(batches))
    return record


def check_finite(name: str, x: Tensor, label: str, which: str) -> None:
    """Raises ``ValueError`` naming layer and image when ``x`` holds NaN or infinity."""
    # One pass and no mask: a sum of finite float32 values of a network does not overflow.
    if x.numel() and not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"Layer '{name}' gets {bad} of {x.numel()} inputs that are NaN or infinite in the "
            f'{which} model, on {label}. Check the checkpoint (does the float model evaluate '
            'well?) and that image.')


@contextmanager
def _taking(prepared: PreparedModel, take: Callable[[str, QuantizedLayer, Tensor], None]):
    """Calls ``take`` before every call of every planned layer."""
    def hook_for(name: str):
        def hook(module, args, kwargs):
            take(name, module, layer_input(args, kwargs))
        return hook

    handles = [layer.register_forward_pre_hook(hook_for(name), with_kwargs=True)
               for name, layer in prepared.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
