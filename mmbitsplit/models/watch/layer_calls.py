"""Finds out, while a model is watched, what the classes of its layers and norms compute.

A class that runs code of its own may pad its input, standardize its weight, scale its output or
have its activation inside. What it does is read from the operations of its calls, computed again
from what was read, and tried on inputs of other sizes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmbitsplit.functional import apply_layer
from mmbitsplit.models.layers.geometry import (
    alike,
    computes,
    computes_like_torch,
    layer_geometry,
    layer_kind,
    normalizes_like_torch,
    own_forward,
)
from mmbitsplit.models.layers.steps import NO_STEPS, StepList, Steps
from mmbitsplit.models.watch.call_record import CallRecord, NotUnderstood, same_elements
from mmbitsplit.models.watch.layer_inside import LayerInside, canonical, read_layer, read_norm
from mmbitsplit.structures import LayerGeometry

UNLIKE = 'computes something else than its torch parent class'
_MOST_SIZES = 5  # inputs of other sizes that a class is tried on


@dataclass(frozen=True)
class _Seen:
    """What a layer's calls showed so far.

    Args:
        module: The layer.
        found: What its class does.
        dim: Number of dimensions of its input.
        largest: Of its first input in magnitude, 0-dimensional.
    """

    module: nn.Module
    found: LayerInside
    dim: int
    largest: Tensor


@dataclass
class LayerCalls:
    """What the calls of layers and norms showed.

    Args:
        inside: Of layers that a quantized layer can stand for, what their class does beyond its
            attributes.
        unlike: Of layers and norms that it cannot, why.
        norm_steps: Of batch norms, the steps that their class takes after normalizing.
    """

    inside: dict[str, LayerInside] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    norm_steps: dict[str, StepList] = field(default_factory=dict)
    _records: list[CallRecord | None] = field(default_factory=list)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _paused: bool = False

    def enter(self, module: nn.Module, x: Tensor) -> None:
        """A layer or norm is called."""
        if layer_kind(module) is not None:
            for record in self._open():
                record.problem = 'calls other layers'
        self._records.append(CallRecord(x) if own_forward(module) else None)

    def operation(self, function: Any, args: tuple, kwargs: dict | None, out: Any) -> None:
        """An operation was run."""
        if not self._paused:
            for record in self._open():
                record.operation(function, args, kwargs, out)

    def close(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The class has done its part of a call; what comes now is done by hooks of the user's."""
        if self._records and self._records[-1] is not None:
            self._records[-1].close(output)

    def _open(self) -> list[CallRecord]:
        return [record for record in self._records if record is not None and not record.closed]

    def leave_layer(self, name: str, module: nn.Module, args: tuple, kwargs: dict, x: Tensor,
                    output: Tensor) -> None:
        """A call of a layer is over."""
        record = self._records.pop()
        if name in self.unlike:
            return
        if record is None or not x.numel():
            with self._pause():
                if not computes_like_torch(module, x, output):
                    self.unlike[name] = UNLIKE
            return
        try:
            if len([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]) > 1:
                raise NotUnderstood('takes several tensors')
            record.check_returned(output)
            with ExitStack() as stack:
                if torch.is_autocast_enabled(x.device.type) or torch.is_inference_mode_enabled():
                    # Casts are no steps, and operations come undivided in inference mode.
                    for context in (torch.autocast(x.device.type, enabled=False),
                                    torch.inference_mode(False), torch.no_grad()):
                        stack.enter_context(context)
                    record, x, output = self._again(module, x)
                stack.enter_context(self._pause())
                found = read_layer(record, output)
                _check_shape(module, found)
                self._compare(name, module, found, x, output)
        except NotUnderstood as error:
            self._refuse(name, str(error))

    def _again(self, module: nn.Module, x: Tensor) -> tuple[CallRecord, Tensor, Tensor]:
        """Runs a class once more, recorded, on a copy of its input."""
        x = x.to(module.weight.dtype, copy=True)
        self._records.append(CallRecord(x))
        try:
            output = module.forward(x)
        finally:
            record = self._records.pop()
        return record, x, output

    def leave_norm(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> bool:
        """A call of a batch norm is over; returns whether it can be folded as far as it goes."""
        record = self._records.pop()
        with self._pause():
            if record is None or not x.numel():
                return normalizes_like_torch(module, x, output)
            try:
                steps = read_norm(record, output)
            except NotUnderstood as error:
                self.unlike.setdefault(name, f'its class {error}')
                return False
            known = self.norm_steps.setdefault(name, steps)
            return known.same_as(steps) and _normalizes(module, steps, x, output)

    def finish(self) -> None:
        """Tries every class with code of its own on inputs of other sizes."""
        for name, seen in list(self._seen.items()):
            found = _tried(seen)
            if found is None:
                self._refuse(name, 'computes something else on inputs of other sizes')
            elif not _as_declared(seen.module, found):
                self.inside[name] = found
        self._seen.clear()

    def after(self, name: str) -> StepList:
        """The steps that a layer's or norm's class takes behind what is folded or quantized."""
        seen = self._seen.get(name)
        return self.norm_steps.get(name, NO_STEPS) if seen is None else seen.found.after

    def _compare(self, name: str, module: nn.Module, found: LayerInside, x: Tensor,
                 output: Tensor) -> None:
        """Holds a call against the ones before, or against its own output if it is the first.

        Raises:
            NotUnderstood: They do not agree.
        """
        if name not in self._seen:
            if not _computes(found, x, output):
                raise NotUnderstood('computes something that its operations do not show')
            self._seen[name] = _Seen(module, found, x.dim(), x.detach().abs().amax())
            return
        known = self._seen[name].found
        geometries = tuple(item for item in known.geometries if item in found.geometries)
        same = found.before.same_as(known.before) and found.after.same_as(known.after) \
            and torch.equal(found.weight, known.weight) and (
                found.bias is known.bias is None
                or None not in (found.bias, known.bias) and torch.equal(found.bias, known.bias))
        if not same or not geometries:
            raise NotUnderstood('does not compute the same in every call')
        self._seen[name] = replace(self._seen[name],
                                   found=replace(known, geometries=geometries))

    def _refuse(self, name: str, reason: str) -> None:
        self._seen.pop(name, None)
        self.unlike[name] = f'its class {reason}'

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def _check_shape(module: nn.Module, found: LayerInside) -> None:
    geometry, declared = found.geometry, layer_geometry(module)
    if geometry.kind != declared.kind or geometry.weight_shape != declared.weight_shape:
        raise NotUnderstood(f'multiplies by a weight of shape {geometry.weight_shape} where its '
                            f'own is {declared.weight_shape}')


def _as_declared(module: nn.Module, found: LayerInside) -> bool:
    """Whether a class does no more than its attributes say."""
    weight, bias = module.weight, module.bias
    return not found.before and not found.after \
        and canonical(found.geometry) == canonical(layer_geometry(module)) \
        and (found.weight is weight or same_elements(found.weight, weight)) \
        and (found.bias is bias is None
             or None not in (found.bias, bias) and same_elements(found.bias, bias))


def _computes(found: LayerInside, x: Tensor, output: Tensor) -> bool:
    x = Steps.of(found.before)(x)
    if not found.after:  # a sample of the positions tells
        return computes(found.geometry, found.weight, found.bias, x, output)
    return alike(_output(found, found.geometry, x), output)


def _output(found: LayerInside, geometry: LayerGeometry, x: Tensor) -> Tensor:
    """What a layer makes of what its steps before have made."""
    return Steps.of(found.after)(apply_layer(x, found.weight, found.bias, geometry))


def _normalizes(norm: nn.Module, steps: StepList, x: Tensor, output: Tensor) -> bool:
    if norm.training or norm.running_mean is None:
        return False
    normalized = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                              False, 0.0, norm.eps)
    return alike(Steps.of(steps)(normalized), output)


def _tried(seen: _Seen) -> LayerInside | None:
    """Keeps the geometries that agree on other sizes; ``None`` if none does."""
    found, geometries = seen.found, seen.found.geometries
    for shape in _other_shapes(found.geometry, seen.dim):
        probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(seen.largest)
        probe *= seen.largest
        try:
            output = seen.module.forward(probe)
        except Exception:  # it takes inputs of some sizes only
            continue
        geometries = tuple(geometry for geometry in geometries
                           if _agrees(found, geometry, probe, output))
    return replace(found, geometries=geometries) if geometries else None


def _agrees(found: LayerInside, geometry: LayerGeometry, probe: Tensor, output: Tensor) -> bool:
    try:
        expected = _output(found, geometry, Steps.of(found.before)(probe))
    except RuntimeError:  # a constant of the size that was seen
        return False
    return expected.shape == output.shape and alike(expected, output)


def _other_shapes(geometry: LayerGeometry, dim: int) -> Iterator[tuple[int, ...]]:
    if geometry.kind == 'linear':
        yield (*range(2, 1 + dim), geometry.in_channels)
        return
    span = [dilation * (kernel - 1) + 2
            for dilation, kernel in zip(geometry.dilation, geometry.kernel_size)]
    steps = sorted({0, 1, *(step - 1 for step in geometry.stride), *geometry.stride})
    for step in steps[:_MOST_SIZES]:
        yield (1, geometry.in_channels, span[0] + step, span[1] + step + 1)
