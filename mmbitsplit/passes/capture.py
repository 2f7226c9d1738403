"""Takes from one layer call what calibration needs: patches, samples, range."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.functional import (
    ActivationSamples,
    channel_dim,
    gather_outputs,
    gather_patches,
    output_size,
)
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.product import Product
from mmbitsplit.passes.product_capture import ProductCapture, capture_product
from mmbitsplit.passes.row_masks import real_rows
from mmbitsplit.passes.sampling import (
    draw_by_importance,
    draw_with_repeats,
    is_held_out,
    rows_per_call,
    sample_positions,
)
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.passes.team import Team
from mmbitsplit.structures import CalibrationSpec, ProductPlan

SAMPLES_PER_LAYER = 4096  # columns that the search for activation scales looks at


@dataclass(frozen=True, kw_only=True)
class CallCapture:
    """What was taken from one call.

    Args:
        patches: (G, N, K) inputs of the product at the sampled positions, real values.
        samples: (C, S) inputs for the scale search.
        low, high: (C,) range of the whole input.
        held_out: (K,) bool.
        shape: Shape of the input, for error messages.
        batch: Number of the batch, over all processes.
    """

    patches: Tensor
    samples: Tensor
    low: Tensor
    high: Tensor
    held_out: Tensor
    shape: tuple[int, ...]
    batch: int = 0


@dataclass(frozen=True)
class Sampler:
    """Says which positions of a call are taken; the same ones in every pass.

    Args:
        spec: Rows, seed, holdout.
        num_batches: Batches of the calibration.
        calls: Number of calls in a batch, by layer name.
        totals: Number of calls in all batches, of layers that batches call differently.
        reached: Of layers that only some batches call, the numbers of these in order.
        stopwatch: Told what sampling takes.
        drawn: Positions drawn in the float pass, by layer, call and batch, for the other one.
        chosen: Positions drawn by importance, likewise; ``None`` where all are drawn evenly.
        products: Plans of the products whose calls are captured, too.
        masks: By batch, (sentences, tokens) bool: the tokens that are looked at (``row_masks``).
    """

    spec: CalibrationSpec
    num_batches: int
    calls: dict[str, int]
    totals: dict[str, int] = field(default_factory=dict)
    reached: dict[str, list[int]] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    drawn: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    chosen: dict[tuple[str, int, int], Tensor] | None = None
    products: Mapping[str, ProductPlan] = field(default_factory=dict)
    masks: Mapping[int, Tensor] = field(default_factory=dict)

    def share_of_call(self, name: str, rows: int) -> int:
        """How many of a layer's rows one call contributes."""
        if name in self.totals:
            return rows_per_call(rows, 1, self.totals[name])
        return rows_per_call(rows, self.num_batches, self.calls[name])

    def far_off(self, counts: Mapping[int, Mapping[str, int]]) -> bool:
        """Whether layers get less than half, or more than twice, of the rows asked for.

        Args:
            counts: Calls of each layer in each batch, of all processes.
        """
        for name, calls in self.calls.items():
            expected = self.totals.get(name, self.num_batches * calls)
            total = sum(batch.get(name, 0) for batch in counts.values())
            if total and not expected <= 2 * total <= 4 * expected:
                return True
        return False

    def held_out(self, name: str, batch: int, num_rows: int) -> Tensor:
        """Marks the positions of a call that no solver sees, (num_rows,) bool."""
        if name in self.reached:
            reached = self.reached[name]
            return is_held_out(reached.index(batch), len(reached), num_rows, self.spec.holdout)
        return is_held_out(batch, self.num_batches, num_rows, self.spec.holdout)

    def positions(self, name: str, layer: QuantizedLayer, call: int, batch: int,
                  shape: torch.Size) -> Tensor:
        """Sampled output positions of a call, flat indices (K,)."""
        sizes = output_size(layer.geometry, shape)
        count = math.prod(sizes)
        chosen = None if self.chosen is None else self.chosen.get((name, call, batch))
        # Of another size than in the float pass: an error found later.
        if chosen is not None and not bool((chosen[-1:] >= count).any()):
            return chosen
        rows = self.share_of_call(name, self.spec.rows_per_layer)
        key = (self.spec.seed, name, call, batch)
        real = self._real(layer, batch, sizes)
        return sample_positions(count, rows, key) if real is None \
            else real[sample_positions(real.numel(), rows, key)]

    def _real(self, layer: QuantizedLayer, batch: int, sizes: Sequence[int]) -> Tensor | None:
        """Indices of the rows that are looked at, ``None`` for all."""
        return real_rows(self.masks.get(batch), sizes) if layer.geometry.kind == 'linear' else None

    def choose(self, name: str, call: int, batch: int, importance: Tensor) -> None:
        """Draws the positions of a call by importance (count,), for all passes."""
        assert self.chosen is not None
        real = real_rows(self.masks.get(batch), importance.shape)
        drawn = draw_by_importance(
            importance if real is None else importance[real.to(importance.device)],
            self.share_of_call(name, self.spec.rows_per_layer),
            (self.spec.seed, name, call, batch))
        self.chosen[name, call, batch] = drawn if real is None else real[drawn]

    def patches(self, name: str, layer: QuantizedLayer, call: int, batch: int, x: Tensor,
                ) -> Tensor:
        """Patches at those positions, (G, N, K)."""
        positions = self.drawn.pop((name, call, batch), None)
        # Inputs of another size than in the float pass are an error found later.
        most = math.prod(output_size(layer.geometry, x.shape))
        if positions is None or bool((positions[-1:] >= most).any()):
            positions = self.positions(name, layer, call, batch, x.shape)
        return gather_patches(x.detach(), positions.to(x.device), layer.geometry)

    def target(self, name: str, layer: QuantizedLayer, call: int, batch: int,
               shape: torch.Size, output: Tensor) -> Tensor:
        """A call's outputs at those positions, (G, M, K), without bias and never a view.

        Args:
            shape: Of the call's input.
            output: What the call gave.
        """
        with self.stopwatch('sampling'):
            positions = self.positions(name, layer, call, batch, shape)
            if self.chosen is not None and (name, call, batch) not in self.chosen:
                raise ValueError(
                    f"Layer '{name}' is called more often without gradients than with them: its "
                    "positions cannot be drawn by importance. Set calibration.sampling='even'.")
            self.drawn[name, call, batch] = positions
            target = gather_outputs(output.detach(), positions.to(output.device), layer.geometry)
            bias = layer.float_weights().bias  # whatever codes are installed
            if bias is not None:
                target -= bias.detach().view(layer.geometry.groups, -1, 1)
        return target

    def capture(self, name: str, layer: QuantizedLayer | Product, call: int, batch: int,
                *inputs: Tensor) -> CallCapture | ProductCapture:
        """Everything that solving needs of a call of the quantized pass."""
        with self.stopwatch('sampling'):
            if isinstance(layer, Product):
                a, b = (ordinary(x.detach(), layer) for x in inputs)
                calls = self.totals.get(name) or self.num_batches * self.calls[name]
                return capture_product(a, b, self.products[name], 1 / calls,
                                       (self.spec.seed, name, call, batch),
                                       self.masks.get(batch))
            return self._capture(name, layer, call, batch, ordinary(inputs[0].detach(), layer))

    def _capture(self, name: str, layer: QuantizedLayer, call: int, batch: int, x: Tensor,
                 ) -> CallCapture:
        patches = self.patches(name, layer, call, batch, x)
        channels = x.movedim(channel_dim(layer.geometry), 0)
        if x.dim() == 1 or channels.is_contiguous():  # such as one image: a view
            channels = channels.reshape(channels.shape[0], -1)
        sizes = channels.shape[1:]
        wanted = self.share_of_call(name, SAMPLES_PER_LAYER)
        real = self._real(layer, batch, sizes)
        key = (self.spec.seed, name, call, batch, 'inputs')
        if real is None:
            chosen = draw_with_repeats(sizes.numel(), wanted, key)
            low, high = channel_extremes(channels)
        else:
            chosen = real[draw_with_repeats(real.numel(), wanted, key)]
            low, high = channel_extremes(take_columns(channels, real.to(x.device)))
        return CallCapture(
            patches=patches, samples=take_columns(channels, chosen.to(x.device)),
            low=low, high=high,
            held_out=self.held_out(name, batch, patches.shape[-1]),
            shape=tuple(x.shape), batch=batch)


def ordinary(x: Tensor, layer: QuantizedLayer | Product) -> Tensor:
    """What calibration keeps of an input: no inference tensor, in the precision of the layer.

    Autocast gives layers inputs of lower precision; ``QuantizedLayer`` takes them as they are.
    """
    dtype = torch.float32 if isinstance(layer, Product) else layer.product_weight.dtype
    x = x.to(dtype) if x.is_floating_point() else x
    return x.clone() if x.is_inference() else x


def take_columns(channels: Tensor, chosen: Tensor) -> Tensor:
    """Returns columns (C, K) of inputs (C, ...), counted over all dimensions but the first."""
    if channels.dim() == 2:
        return channels.index_select(1, chosen)
    # Taken where they lie. A copy with the channels first would be as large as the input, and what
    # is kept of each batch would settle in the holes that such copies leave.
    return channels[(slice(None), *torch.unravel_index(chosen, channels.shape[1:]))].contiguous()


def channel_extremes(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns least and greatest value (C,) of inputs (C, ...); zeros where there is none."""
    if not channels.numel():  # no box on this image
        zeros = channels.new_zeros(channels.shape[0])
        return zeros, zeros
    # Neighbours in memory first; aminmax takes ten times as long.
    inner = channels.flatten(2) if channels.dim() > 2 else channels
    low, high = inner.amin(-1), inner.amax(-1)
    return (low.amin(1), high.amax(1)) if low.dim() > 1 else (low, high)


def merge_samples(captures: Sequence[CallCapture], team: Team) -> ActivationSamples:
    """Joins the samples and ranges of all calls of a layer, those of other processes too."""
    mine = [(capture.batch, capture.samples, capture.low, capture.high) for capture in captures]
    calls = [call for part in team.gather(mine) for call in part]
    calls.sort(key=lambda call: call[0])  # the order of one process alone; calls stay in theirs
    return ActivationSamples(
        torch.cat([samples for _, samples, _, _ in calls], 1),
        torch.stack([low for _, _, low, _ in calls]).amin(0),
        torch.stack([high for _, _, _, high in calls]).amax(0))
