"""A layer's weight as a GPU multiplies it by bytes: codes of at most 4 bits two in a byte."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbitsplit.functional.kernels.byte_products import (
    Rounding,
    Scaling,
    Windows,
    pack_weight,
)
from mmbitsplit.functional.patches import explicit_padding
from mmbitsplit.models.layers.gpu_support import Kernels, choose_kernels, kernels_named
from mmbitsplit.models.layers.integer_support import traced
from mmbitsplit.models.layers.integer_weight import IntegerWeight, channels_come_first, why_no_bytes
from mmbitsplit.models.layers.quantizers import ActivationQuantizer, WeightQuantizer
from mmbitsplit.structures import LayerGeometry, QParams

PACKED_BITS = 4
# Kernels hold sums of products of bytes before the zero points are taken off, 16 times as large
# for packed codes: longer ones might leave 32 bits.
LONGEST = 1 << 16


def why_float_on_gpu(geometry: LayerGeometry, qparams: QParams) -> str | None:
    """Why a layer cannot be computed with integers at a width on a GPU, ``None`` where it can.

    Args:
        geometry: Of the layer, for which ``why_never`` has no reason.
        qparams: Of the input in use.
    """
    reason = why_no_bytes(geometry, qparams)
    if reason is not None:
        return reason
    if geometry.kind == 'conv_transpose2d':
        return 'there is no kernel of a transposed convolution for GPUs'
    if geometry.groups > 1:
        return (f'it has {geometry.groups} groups of channels; kernels for GPUs have one, and '
                "depthwise ones are torch's")
    if geometry.inputs_per_output >= LONGEST:
        return 'its sums may leave 32 bits'
    return None


class GpuWeight(IntegerWeight):
    """``IntegerWeight`` on a CUDA device.

    Where one of the inputs of a call is not a number, all outputs of the call are none: the device
    is not waited for to find out.

    Args:
        quantizer: Of one width, hard.
        inputs: Of the layer's input.
        factor: See ``WeightQuantizer.weight``.
        kernels: Whose; what the device has when not given.
    """

    def __init__(self, quantizer: WeightQuantizer, inputs: ActivationQuantizer,
                 factor: float = 1.0, kernels: Kernels | None = None):
        super().__init__(quantizer, inputs, factor)
        self.kernels = choose_kernels(self.scale.device)[0] if kernels is None else kernels

    @property
    def codes(self) -> Tensor:
        """int8, shape of the weight; made anew each time."""
        codes = self._weight.codes()  # (O, taps, C)
        return codes.transpose(1, 2).contiguous().view(self.geometry.weight_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of what it multiplies by."""
        return self._weight.bytes.numel() + 8 * self.scale.numel()

    def product(self, x: Tensor) -> Tensor | None:
        """What the layer makes of real inputs; see ``IntegerWeight.product``."""
        if x.dtype != torch.float32 or x.device != self.scale.device or not x.numel() \
                or traced() or (x.requires_grad and torch.is_grad_enabled()):
            return None
        if self.geometry.kind == 'linear':
            y = self._windows(x.reshape(1, 1, -1, x.shape[-1]), (0, 0), Windows())
            return y.view(*x.shape[:-1], y.shape[-1])
        if x.dim() == 3:
            return self._conv(x.unsqueeze(0)).squeeze(0)
        return self._conv(x) if x.dim() == 4 else None

    def _conv(self, x: Tensor) -> Tensor:
        geometry = explicit_padding(self.geometry, x.shape)
        if geometry.pre_padding_mode != 'zeros' or any(geometry.pre_padding):
            mode = geometry.pre_padding_mode
            x = F.pad(x, geometry.pre_padding, mode='constant' if mode == 'zeros' else mode)
        windows = Windows(geometry.kernel_size, geometry.stride, geometry.dilation)
        y = self._windows(x.permute(0, 2, 3, 1), geometry.padding, windows).permute(0, 3, 1, 2)
        # Compiled operators of others (mmcv's RoIAlign) read maps as if channels came first.
        return y if self.channels_last or not channels_come_first(x) else y.contiguous()

    def _windows(self, x: Tensor, padding: tuple[int, int], windows: Windows) -> Tensor:
        """x (A, H, W, C) to (A, H, W, out_channels)."""
        kernels = kernels_named(self.kernels)
        bytes_, found = kernels.round_bytes(x.detach(), self._rounding, padding,
                                            self._weight.padded)
        return kernels.multiply(self._weight, bytes_, found, windows, self._scaling)

    @torch.no_grad()
    def _prepare(self, codes: Tensor, qparams: QParams) -> None:
        """Packs codes, and what inputs are rounded by and sums are multiplied by."""
        geometry = self.geometry
        self._rounding = byte_rounding(qparams)
        step = 1.0 if qparams.unit else qparams.scale.detach()
        rows = codes.reshape(geometry.out_channels, geometry.in_channels, -1).transpose(1, 2)
        self._weight = pack_weight(rows, self.num_bits <= PACKED_BITS)
        zeros = self._rounding.shift.expand(geometry.in_channels)
        self._scaling = Scaling(
            self.scale * step,
            -(rows.to(torch.int32) * zeros).sum((1, 2), dtype=torch.int32),
            None if self.bias is None else self.bias.detach().to(torch.float32),
            None if self.offset is None else self.offset * step,
            int(zeros.sum()) * rows.shape[1])

    def extra_repr(self) -> str:
        packed = ', two codes a byte' if self._weight.packed else ''
        return f'num_bits={self.num_bits}, integers by {self.kernels}{packed}'


def byte_rounding(qparams: QParams, along: str = 'channel') -> Rounding:
    """How inputs become bytes: codes less zero point as they are, or moved as far as it takes.

    Args:
        qparams: Of the inputs, at most 8 bits.
        along: See ``Rounding``.
    """
    low, high = (bound - qparams.zero_point for bound in qparams.limits())
    shift = torch.zeros_like(high - low).clamp(-128 - low, 127 - high)
    scale = qparams.scale.detach().to(torch.float32)
    values = torch.broadcast_tensors(scale, low, high, shift)
    scale, low, high, shift = (value.contiguous() for value in values)
    return Rounding(scale, low.to(torch.float32), high.to(torch.float32), shift.to(torch.int32),
                    along)
