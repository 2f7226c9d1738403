"""Compares a prepared model, still computing in float, with the float model that it was.

Surgery rests on what a few watched runs showed, and on layers being nothing but their weight and
geometry. Where a model looks at its layers in another way (their exact type, their parameters), or
runs otherwise on other images, the outputs of layers tell.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmbitsplit.models import PreparedModel, layer_kind, quantized_layers
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.models.watch.storages import odd_layout
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.hooks import hooked
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.selection_replay import in_a_recorded_call

RESULT = '<result>'
ELEMENTS = 4096  # of an output that are compared, evenly spread
# Relative difference below which it is round-off, and how much more than an equally small change
# of the float model makes there it must be: proposals and top-k choose others after either.
TOLERANCE, MORE = 1e-3, 3.0
NOISE = (1e-5, 1e-5, 5e-5, 5e-5)  # of the largest output of a layer, one run of the model each
MOST_CULPRITS = 8
REPEATS = 4  # of the float model, which chance makes alike less often than once


@dataclass
class Outputs:
    """What one forward computed.

    Args:
        calls: By layer or batch norm, and for what the run returned, (shape, evenly spread
            elements) a call.
        error: What it was broken off by.
    """

    calls: dict[str, list[tuple[tuple[int, ...], Tensor]]] = field(default_factory=dict)
    error: Exception | None = None


@dataclass(frozen=True)
class Difference:
    """Where two forwards differ.

    Args:
        name: Of the first layer or batch norm.
        size: Relative to its outputs; infinite where it is called another number of times or gives
            another shape.
        error: That broke off the second one.
    """

    name: str
    size: float
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f'it ends with {type(self.error).__name__}: {self.error}'
        what = 'what the run returns' if self.name == RESULT else f"the output of '{self.name}'"
        return f'{what} ' + (f'differs by {100 * self.size:.2g} %' if self.size < float('inf')
                             else 'comes in another number or shape')


class SurgeryCheck:
    """Keeps what the float model computes on a batch, to compare with.

    Args:
        forwards: Of the float model; what replay points decide is taken from it.
        batch: Number of the batch.

    Raises:
        Exception: What the float model itself ends with.
    """

    def __init__(self, forwards: Forwards, batch: int):
        self.model, self.forwards, self.batch, self.tape = forwards.model, forwards, batch, Tape()
        with forwards.recording(self.tape):
            self.expected = _outputs(forwards, batch)
        if self.expected.error is not None:
            raise self.expected.error
        self._noise: dict[str, float] | None = None

    def compare(self, prepared: PreparedModel) -> Difference | None:
        """Runs the prepared model; says where it differs, if it does."""
        outputs = self._again()
        folded = {norm: layer for norm, layer in prepared.folded.items()
                  if prepared.is_in(norm)}
        found = _differences(self.expected, outputs, folded)
        for name, size in found.items():
            if size > TOLERANCE and size > MORE * self._noise_floor(prepared).get(name, 0.0):
                return Difference(name, size, outputs.error)
        return None

    def difference_of_itself(self, prepared: PreparedModel) -> Difference | None:
        """Says where the float model differs from itself, if it does; afterwards it is float."""
        prepared.put_back()
        return next(filter(None, (self.compare(prepared) for _ in range(REPEATS))), None)

    def culprits(self, prepared: PreparedModel) -> list[str]:
        """Finds the layers whose surgery makes the difference; afterwards the model is float."""
        found: list[str] = []
        while len(found) < MOST_CULPRITS:
            names = [name for name in prepared.layers if name not in found]
            if not names or not self._differs(prepared, names):
                break
            fine, wrong = 0, len(names)  # with so many of them put in
            while wrong - fine > 1:
                middle = (fine + wrong) // 2
                fine, wrong = (fine, middle) if self._differs(prepared, names[:middle]) \
                    else (middle, wrong)
            found.append(names[wrong - 1])
        prepared.put_back()
        return found

    def _differs(self, prepared: PreparedModel, names: Sequence[str]) -> bool:
        prepared.put_back()
        prepared.put_in(names)
        return self.compare(prepared) is not None

    def _again(self) -> Outputs:
        self.tape.positions.clear()
        with self.forwards.replaying(self.tape):
            return _outputs(self.forwards, self.batch)

    def _noise_floor(self, prepared: PreparedModel) -> dict[str, float]:
        """What changes of the size of round-off make of the outputs of the float model."""
        if self._noise is None:
            inside = list(filter(prepared.is_in, prepared.layers))
            prepared.put_back()
            self._noise = {}
            for seed, size in enumerate(NOISE):
                with _noisy(self.model, seed, size):
                    outputs = self._again()
                for name, found in _differences(self.expected, outputs, {}).items():
                    self._noise[name] = max(self._noise.get(name, 0.0), found)
            prepared.put_in(inside)
        return self._noise


def refusal(culprits: Sequence[str], prepared: PreparedModel, difference: Difference,
            label: str) -> str:
    """Words an error: which layers cannot be quantized, how it shows, and what to do."""
    norms = {layer: norm for norm, layer in prepared.folded.items()}
    named = ', '.join(f"'{name}'" + (f" (with its batch norm '{norms[name]}')" if name in norms
                                     else '') for name in culprits)
    rows = ', '.join(f"dict(match='{name}', skip=True)" for name in culprits)
    return (f'Layer(s) {named} cannot be quantized: with quantized layers in '
            f'place, still computing in float, the model computes something else on {label}: '
            f'{difference}. Such models ask for more of a layer than its class, attributes, '
            "weight and bias (its exact type, its parameters), or read a batch norm's input in "
            f'some images only. Leave them in float with overrides=[{rows}], or mend the model.')


def not_repeating(difference: Difference, label: str) -> str:
    """Words an error: how a float model differs from itself, and what to do."""
    return (f'The model does not repeat itself: run twice on {label} as it is, in float and with '
            f'the same random numbers of torch, NumPy and random, {difference}. Layers are fitted '
            'to what the float model computes, which must be the same in every run. Look for a '
            'random choice in forward that draws from a generator of its own (pass it the global '
            'one, or seed it at the start of forward), or for a count or a clock that it goes by; '
            'in eval mode leave such steps out (if self.training: ...).')


def _outputs(forwards: Forwards, batch: int) -> Outputs:
    outputs = Outputs()

    def keep(name: str, output: Any) -> None:
        # What is called inside a recorded step is not called again.
        if isinstance(output, Tensor) and not in_a_recorded_call() and odd_layout(output) is None:
            flat = output.detach().reshape(-1)
            # Odd, so that a map whose width it divides is not looked at in the same columns only.
            outputs.calls.setdefault(name, []).append(
                (tuple(output.shape), flat[::max(1, flat.numel() // ELEMENTS) | 1].clone()))

    with _watched(forwards.model, keep):
        try:
            result = forwards.alone(batch)
        except Exception as error:
            outputs.error = error
        else:
            for leaf in tree_leaves(result):
                keep(RESULT, leaf)
    return outputs


def _watched(model: nn.Module, keep: Callable[[str, Any], None]) -> AbstractContextManager[None]:
    def hook_for(name: str):
        return lambda module, args, output: keep(name, output)

    looked_at = [(name, module) for name, module in model.named_modules()
                 if isinstance(module, (nn.modules.batchnorm._BatchNorm, Steps))
                 or layer_kind(module)]
    looked_at += [(name, model.get_submodule(name)) for name, _ in quantized_layers(model)]
    return hooked(looked_at, hook_for)


def _noisy(model: nn.Module, seed: int, size: float) -> AbstractContextManager[None]:
    """Changes every layer's output by a little."""
    generators: dict[torch.device, torch.Generator] = {}

    def hook(module, args, output):
        if isinstance(output, Tensor) and output.is_floating_point():
            device = output.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed)
            noise = torch.rand(output.shape, generator=generators[device], device=device,
                               dtype=output.dtype).sub_(0.5)
            return output + noise * (2 * size * _extent(module, output))
        return output

    changed = ((name, module) for name, module in model.named_modules()
               if layer_kind(module) or isinstance(module, nn.modules.batchnorm._BatchNorm))
    return hooked(changed, lambda name: hook, prepend=True)


def _extent(module: nn.Module, output: Tensor) -> float:
    """The largest number that went into an output."""
    if not output.numel():
        return 0.0
    extent = float(output.detach().abs().amax())
    if layer_kind(module) is None and module.bias is not None:  # what a bias cancels was rounded
        extent = max(extent, float(module.bias.detach().abs().amax()))
    return extent


def _differences(expected: Outputs, outputs: Outputs, folded: Mapping[str, str],
                 ) -> dict[str, float]:
    """Relative differences by layer, in the order in which the first forward called them.

    Args:
        folded: Layer by batch norm that it has taken in and whose output it gives.
    """
    found = {}
    for name, calls in expected.calls.items():
        if name in folded.values():
            continue
        # Where a norm's class goes on after normalizing, steps stand in its place.
        theirs = outputs.calls.get(name) or outputs.calls.get(folded.get(name, name), [])
        # Lists of detections are longer or shorter by round-off; raw outputs are not.
        alike = [a[0] for a in calls] == [b[0] for b in theirs]
        if alike or name != RESULT:
            found[name] = max(map(_difference, calls, theirs)) if alike else float('inf')
    if outputs.error is not None:
        found[RESULT] = float('inf')
    return found


def _difference(expected: tuple[tuple[int, ...], Tensor], other: tuple[tuple[int, ...], Tensor],
                ) -> float:
    (_, a), (_, b) = expected, other
    if not a.numel() or not a.is_floating_point() or not bool(torch.isfinite(a).all()):
        return 0.0  # what is not finite is for the float pass to report
    size = float((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-12))
    return size if size == size else float('inf')
