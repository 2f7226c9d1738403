"""Takes from one layer call what calibration needs: patches, samples, range."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.calibration.sampling import is_held_out, rows_per_call, sample_positions
from mmbitsplit.functional import ActivationSamples, channel_dim, gather_patches, output_size
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import CalibrationSpec

SAMPLES_PER_LAYER = 8192  # columns that the search for activation scales looks at


@dataclass(frozen=True)
class CallCapture:
    """What was taken from one call.

    Args:
        patches: (G, N, K) inputs of the product at the sampled positions, real values.
        samples: (C, S) inputs for the scale search.
        low, high: (C,) range of the whole input.
        held_out: (K,) bool.
        shape: Shape of the input, for error messages.
    """

    patches: Tensor
    samples: Tensor
    low: Tensor
    high: Tensor
    held_out: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sampler:
    """Says which positions of a call are taken; the same ones in every pass.

    Args:
        spec: Rows, seed, holdout.
        num_batches: Batches of the calibration.
        calls: Number of calls by layer name.
    """

    spec: CalibrationSpec
    num_batches: int
    calls: dict[str, int]

    def positions(self, name: str, layer: QuantizedLayer, call: int, batch: int,
                  shape: torch.Size) -> Tensor:
        """Sampled output positions of a call, flat indices (K,)."""
        count = 1
        for size in output_size(layer.geometry, shape):
            count *= size
        rows = rows_per_call(self.spec.rows_per_layer, self.num_batches, self.calls[name])
        return sample_positions(count, rows, (self.spec.seed, name, call, batch))

    def patches(self, name: str, layer: QuantizedLayer, call: int, batch: int, x: Tensor,
                ) -> Tensor:
        """Patches at those positions, (G, N, K)."""
        positions = self.positions(name, layer, call, batch, x.shape)
        return gather_patches(x.detach(), positions.to(x.device), layer.geometry)

    def capture(self, name: str, layer: QuantizedLayer, call: int, batch: int, x: Tensor,
                ) -> CallCapture:
        """Everything that solving needs of a call of the quantized pass."""
        x = x.detach()
        patches = self.patches(name, layer, call, batch, x)
        channels = x.movedim(channel_dim(layer.geometry), 0)
        channels = channels.reshape(channels.shape[0], -1)  # (C, positions)
        wanted = rows_per_call(SAMPLES_PER_LAYER, self.num_batches, self.calls[name])
        chosen = sample_positions(channels.shape[1], wanted,
                                  (self.spec.seed, name, call, batch, 'inputs'))
        if channels.shape[1]:
            low, high = channels.amin(1), channels.amax(1)
        else:  # no box on this image
            low = high = channels.new_zeros(channels.shape[0])
        return CallCapture(
            patches, channels[:, chosen.to(x.device)], low, high,
            is_held_out(batch, self.num_batches, patches.shape[-1], self.spec.holdout),
            tuple(x.shape))


def merge_samples(captures: Sequence[CallCapture]) -> ActivationSamples:
    """Joins the samples and ranges of all calls of a layer."""
    return ActivationSamples(
        torch.cat([capture.samples for capture in captures], 1),
        torch.stack([capture.low for capture in captures]).amin(0),
        torch.stack([capture.high for capture in captures]).amax(0))
