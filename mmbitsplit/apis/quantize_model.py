"""Quantizes any torch module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmbitsplit.calibration import Progress, ReplayPoint, calibrate, read_request
from mmbitsplit.structures import QuantizationReport, QuantSpec


def quantize_model(model: nn.Module, batches: Sequence[Any],
                   spec: QuantSpec | Mapping[str, Any] | None = None, *,
                   run: Callable[[nn.Module, Any], Any] | None = None,
                   replay_points: Sequence[ReplayPoint] = (),
                   labels: Sequence[str] | None = None,
                   progress: Callable[[Progress], None] = lambda step: None,
                   ) -> QuantizationReport:
    """Quantizes a model in place from a few batches of its inputs.

    Args:
        model: Any float model; no tracing, so any control flow will do. After an error or
            Ctrl-C it is as it was.
        batches: Inputs: a tensor, or a tuple or dict of arguments of the model.
        spec: The ``quantization`` dict of a config, whose method fills what it leaves open
            (``calibration.read_request``); or a request that says everything. Defaults to W4A8.
        run: How to run the model on a batch, when calling it is not enough.
        replay_points: Calls whose result depends on the data in jumps (box decoding): recorded
            in the float pass and replayed in the quantized one.
        labels: What each batch is called in error messages.
        progress: Told every step.

    Returns:
        What was done to each layer, times and memory.

    Raises:
        ValueError: See ``calibration.calibrate``.
    """
    if not isinstance(spec, QuantSpec):
        spec = read_request(spec or {})
    _, report = calibrate(model, batches, spec, run=run or call_model,
                          replay_points=replay_points, labels=labels, progress=progress)
    return report


def call_model(model: nn.Module, batch: Any) -> Any:
    """Calls a model with a tensor, a tuple of arguments or a dict of them."""
    if isinstance(batch, torch.Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)
