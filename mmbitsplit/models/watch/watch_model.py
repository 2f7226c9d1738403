"""Watches one run of a float model: which layers run, and whose output feeds whom."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models.watch.call_record import same_elements
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.watcher import Watcher


@full_float32()  # TF32 would pass for a layer that computes something else
def watch(model: nn.Module, run: Callable[[], Any], *, inputs: Any = None,
          barriers: Iterable[Any] = ()) -> DataFlow:
    """Runs the model once and reports its data flow.

    What goes into the run and comes out of it are the model's input and output, and so is what
    calls of the model itself take and return.

    Args:
        model: The float model in eval mode.
        run: Runs the model on one batch and returns what came of it.
        inputs: The batch, in whatever carries its tensors.
        barriers: Functions that take a context manager and wrap it around some calls for as
            long as their own context lasts; nothing is seen inside such calls and their
            results have no sources (box decoding, whose result is data-dependent).

    Returns:
        The data flow of the run.

    Raises:
        ValueError: The forward calls a layer from another thread.
    """
    return watched_by(Watcher(model), run, inputs, barriers)


def watched_by(watcher: Watcher, run: Callable[[], Any], inputs: Any,
               barriers: Iterable[Any]) -> DataFlow:
    """``watch`` by a watcher of one's own."""
    with ExitStack() as stack, torch.no_grad():
        for barrier in barriers:
            stack.enter_context(barrier(watcher.replayed_step))
        stack.enter_context(watcher.hooks())
        watcher.take_in(inputs)
        stack.enter_context(watcher)
        with watcher.one_thread.around():
            watcher.hand_out(run())
    with torch.no_grad():
        watcher.calls.finish()
    _only_own_weights(watcher.model, watcher.flow)
    watcher.flow.foreign_weights = watcher.weight_reads.foreign
    watcher.flow.module_calls = [watcher.module_calls.finish()]
    return watcher.flow


def _only_own_weights(model: nn.Module, flow: DataFlow) -> None:
    """Layers whose class multiplies by another weight than it holds cannot show that one."""
    for name, operation in list(flow.also_read.items()):
        inside, module = flow.inside.get(name), model.get_submodule(name)
        if inside is not None and not (
                _same(inside.weight, module.weight) and _same(inside.bias, module.bias)):
            flow.read_elsewhere[name] = operation
            del flow.also_read[name]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or None not in (one, other) and same_elements(one, other)
