"""A layer's weight as torch multiplies it by bytes: codes packed once, no float copy beside."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.functional import is_midrise, odd_codes, per_output, weight_rows
from mmbitsplit.functional.patches import explicit_padding
from mmbitsplit.functional.saturation import pairs_saturate
from mmbitsplit.models.layers.integer_blocks import (
    layer_codes,
    makes_blocks,
    product_codes,
    product_geometry,
    product_values,
    side_by_side,
)
from mmbitsplit.models.layers.integer_packing import PackedCodes
from mmbitsplit.models.layers.integer_rows import FewRows, takes_rows
from mmbitsplit.models.layers.integer_support import (
    integer_conv,
    integer_linear,
    pack_conv,
    pack_linear,
    saturates_pairs,
    traced,
)
from mmbitsplit.models.layers.quantizers import ActivationQuantizer, WeightQuantizer, times
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams


def why_never(geometry: LayerGeometry, weight: nn.Module | None,
              inputs: nn.Module | None) -> str | None:
    """Why a layer cannot be computed with integers at any width, ``None`` where it can at some.

    Args:
        geometry: Of the layer.
        weight, inputs: Its quantizers, of one width or several.
    """
    if geometry.kind == 'conv_transpose2d' and not makes_blocks(geometry):
        return 'torch has no integer conv_transpose2d whose windows overlap'
    if geometry.kind not in ('conv2d', 'conv_transpose2d', 'linear'):
        return f'torch has no integer {geometry.kind}'
    if inputs is None:
        return 'its inputs are float'
    if weight.soft or inputs.soft:
        return 'its codes or scales are being learned'
    qparams = inputs.qparams
    if not qparams.unit and qparams.scale.numel() > 1:
        return ('its inputs have a scale a channel that its weights do not carry '
                "(mode='per_channel')")
    if weight.scale.device != qparams.scale.device:
        return 'its weights and inputs are on two devices'
    return None


def why_no_bytes(geometry: LayerGeometry, qparams: QParams) -> str | None:
    """Why no product of bytes is the layer, on any device, ``None`` where one is."""
    points = qparams.zero_point
    if bool(((points < qparams.quant_min) | (points > qparams.limits()[1])).any()):
        return 'a zero point of its inputs is none of their codes'
    reach = qparams.quant_max - qparams.quant_min
    if reach > 255:
        return 'its inputs have more than 8 bits'
    if geometry.inputs_per_output * reach * 128 >= 2 ** 31:
        return 'its sums may leave 32 bits'
    return None


def must_be_halved(codes: Tensor, geometry: LayerGeometry, reach: int) -> bool:
    """Whether two products of codes and inputs may leave 16 bits, where this processor saturates.

    Args:
        codes: int8, of a layer.
        geometry: Of the layer.
        reach: Largest byte of its inputs.
    """
    return saturates_pairs() and pairs_saturate(weight_rows(codes, geometry), reach)


class IntegerWeight(nn.Module):
    """Stands in the place of a layer's weight quantizer, and multiplies bytes.

    It holds codes in the form that oneDNN takes, one byte a weight, and nothing of them beside;
    ``codes`` and ``weight()`` are made of it for others to read. ``plain`` gives the quantizer
    back as it was.

    Where a processor saturates sums of two products, codes that could make it do so are multiplied
    as ``2 (q >> 1)`` and ``q & 1``, two products that cannot, and take two bytes a weight.

    ``'floor'`` codes, which half a step is added to, are multiplied as ``2 q + 1`` at half the
    scale where that fits into a byte and does not saturate. Another offset takes the sum of the
    inputs, by a product of its own.

    Args:
        quantizer: Of one width, hard.
        inputs: Of the layer's input, of one width.
        factor: See ``WeightQuantizer.weight``.
    """

    soft = False
    learning = None
    left = None
    channels_last = False

    def __init__(self, quantizer: WeightQuantizer, inputs: ActivationQuantizer,
                 factor: float = 1.0):
        super().__init__()
        self.geometry, self.num_bits = quantizer.geometry, quantizer.num_bits
        self.nesting = quantizer.nesting
        self.register_parameter('bias', quantizer.bias)
        for name in ('scale', 'offset'):
            value = times(getattr(quantizer, name), factor)
            self.register_buffer(name, None if value is None else value.detach())
        self._prepare(quantizer.codes, inputs.qparams)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are."""
        return (self.num_bits,)

    @property
    def codes(self) -> Tensor:
        """int8, shape of the weight; made anew each time."""
        codes = self._codes.dense()
        codes = codes.t().contiguous() if self.geometry.kind == 'linear' \
            else layer_codes(codes, self.geometry)
        return codes >> 1 if self._odd else codes

    def weight(self, factor: float = 1.0) -> Tensor:
        """What codes stand for, float32; made anew each time. Inputs have one width, and so one
        factor."""
        weight = self.codes * per_output(self.scale, self.geometry)
        return weight if self.offset is None else weight + per_output(self.offset, self.geometry)

    @property
    def nbytes(self) -> int:
        """Bytes of what it multiplies by."""
        return self._codes.nbytes + 4 * self._scale.numel()

    def plain(self) -> WeightQuantizer:
        """The quantizer that it was made of."""
        return WeightQuantizer(self.geometry, self.num_bits, self.codes, self.scale, self.bias,
                               self.offset, self.nesting).train(self.training)

    def solution(self) -> LayerSolution:
        """See ``WeightQuantizer.solution``."""
        return self.plain().solution()

    def use(self, num_bits: int, factor: float | None = None) -> None:
        """See ``WeightQuantizer.use``."""
        check_width(num_bits, self.widths)

    def lay_out(self, channels_last: bool) -> None:
        """Gives maps channels last in memory from now on, or as the input lies."""
        self.channels_last = channels_last

    def product(self, x: Tensor) -> Tensor | None:
        """What the layer makes of real inputs.

        Args:
            x: (B, C, H, W), (C, H, W), or (..., C) of a linear layer.

        Returns:
            float32; convolutions give channels last in memory where the input lies so, as torch's
            do, or with ``lay_out(True)``. ``None`` where floats have to be taken: for gradients,
            for values that are no numbers, in other dtypes, and in a trace, which would not see a
            compiled loop.
        """
        if x.dtype != torch.float32 or x.device.type != 'cpu' or not x.numel() or traced() \
                or (x.requires_grad and torch.is_grad_enabled()):
            return None
        if self.geometry.kind != 'linear' and x.dim() != 4:
            y = self.product(x.unsqueeze(0)) if x.dim() == 3 else None
            return None if y is None else y.squeeze(0)
        y = None if self._few is None else self._few.product(x, self._codes)
        if y is not None:
            return y
        return self._linear(x) if self.geometry.kind == 'linear' else self._conv(x)

    def _linear(self, x: Tensor) -> Tensor | None:
        bytes_ = self._bytes(x.contiguous())
        if bytes_ is None:
            return None
        rows = bytes_.view(-1, x.shape[-1])
        y = self._multiply(integer_linear, rows)
        if self._sums is not None:
            y.addcmul_(self._sums.of(integer_linear, rows), self.offset)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _multiply(self, product: Callable[..., Tensor], bytes_: Tensor, *steps: Any) -> Tensor:
        """One of the products of bytes, with scales and bias."""
        first, *second = self._codes.of(bytes_.shape)
        scale = 2 * self._scale if second else self._scale
        y = product(bytes_, first, scale, self._zeros, self._bias, *steps)
        for codes in second:
            y.add_(product(bytes_, codes, self._scale, self._zeros, None, *steps))
        return y

    def _conv(self, x: Tensor) -> Tensor | None:
        geometry = explicit_padding(product_geometry(self.geometry), x.shape)
        padding = geometry.padding
        around = padding[1], padding[1], padding[0], padding[0]
        if geometry.pre_padding_mode != 'zeros' or any(geometry.pre_padding):
            mode = geometry.pre_padding_mode
            x = F.pad(x, geometry.pre_padding, mode='constant' if mode == 'zeros' else mode)
        if any(padding) and self._zero_byte is None:  # one in each channel
            x, padding = F.pad(x, around), (0, 0)
        # Compiled operators of others (mmcv's RoIAlign) read maps as if channels came first.
        first = channels_come_first(x)
        bytes_ = self._bytes_of_map(x, first)
        if bytes_ is None:
            return None
        if any(padding) and self._zero_byte:
            bytes_, padding = F.pad(bytes_, around, value=self._zero_byte), (0, 0)
        steps = geometry.stride, padding, geometry.dilation, geometry.groups
        y = self._multiply(integer_conv, bytes_, *steps)
        if self._sums is not None:
            sums, groups = self._sums.of(integer_conv, bytes_, *steps), (geometry.groups, -1)
            y.unflatten(1, groups).addcmul_(sums.unflatten(1, groups),
                                            product_values(self.offset, self.geometry).view(
                                                *groups, 1, 1))
        y = side_by_side(y, self.geometry)
        return _channels_first(y) if first and not self.channels_last else y

    def _bytes_of_map(self, x: Tensor, first: bool) -> Tensor | None:
        """Bytes channels last in memory, whichever dimension is ``first`` in it."""
        x = x.contiguous() if first else x
        if not first or x.shape[1] == 1:
            return self._bytes(x)
        from mmbitsplit.functional.kernels.byte_maps import byte_maps
        return byte_maps(x, *self._rounding)

    def _bytes(self, x: Tensor) -> Tensor | None:
        from mmbitsplit.functional.kernels.byte_codes import byte_codes
        return byte_codes(x, *self._rounding)

    @torch.no_grad()
    def _prepare(self, codes: Tensor, qparams: QParams) -> None:
        """Packs codes, and what sums of products are multiplied by and added to."""
        geometry, low = product_geometry(self.geometry), qparams.quant_min
        # Bytes begin at the lowest code, so that narrow inputs are small numbers.
        shift = (qparams.zero_point - low).to(torch.int32)
        sides = [(bound - qparams.zero_point).to(torch.float32) for bound in qparams.limits()]
        count = max(value.numel() for value in (qparams.scale, shift, *sides))
        self._rounding = tuple(value.expand(count).contiguous() for value in (
            qparams.scale.detach().to(torch.float32), *sides, shift))
        self._channels = count > 1
        self._zero_byte = int(shift[0]) if bool((shift == shift[0]).all()) else None
        step = 1.0 if qparams.unit else float(qparams.scale)
        self._odd = self._fits_odd(codes, qparams)
        self._scale = product_values(self.scale, self.geometry) * step
        codes, bias = product_codes(codes, self.geometry), product_values(self.bias, self.geometry)
        if self._odd:
            codes, self._scale = odd_codes(codes), self._scale / 2
        self._zeros = torch.zeros(geometry.out_channels, dtype=torch.int64)
        rows = weight_rows(codes, geometry)  # (G, M, N)
        self._bias = _less_zeros(bias, rows, self._scale, shift)
        halved = must_be_halved(codes, geometry, qparams.quant_max - qparams.quant_min)
        self._codes, self._sums = _packed(codes, geometry, bool(shift.any()), halved), None
        if self.offset is not None and not self._odd:
            self._sums = InputSums(codes, geometry, step, shift)
        self._few = FewRows(geometry, self._rounding, self._scale, self._bias, halved) \
            if takes_rows(self.geometry) and self._sums is None else None

    def _fits_odd(self, codes: Tensor, qparams: QParams) -> bool:
        """Whether codes are multiplied as ``2 q + 1``."""
        return self.num_bits < 8 and self.nesting == 'floor' \
            and is_midrise(self.scale, self.offset) and not must_be_halved(
                odd_codes(codes), self.geometry, qparams.quant_max - qparams.quant_min)

    # It moves and is stored as the quantizer that it was made of.

    def _apply(self, fn, *args, **kwargs):
        check_stays(fn, self.scale)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + 'codes'] = self.codes

    def extra_repr(self) -> str:
        return f'num_bits={self.num_bits}, integers'


def check_stays(fn: Callable[[Tensor], Tensor], scale: Tensor) -> None:
    """Raises ``ValueError`` where what ``nn.Module._apply`` does would move codes or round them.

    Args:
        fn: What it does.
        scale: Of the codes.
    """
    moved = fn(torch.empty(0, device=scale.device))
    if moved.device != scale.device or moved.dtype != torch.float32:
        raise ValueError(f'Layers that are computed with integers stay on {scale.device} in '
                         f'float32, not on {moved.device} in {moved.dtype}; take them back first '
                         'with to_integer(model, False).')


class InputSums:
    """Sums of the inputs of each group, which the offset of a weight is multiplied by.

    Args:
        codes: Of the weight.
        geometry: Of the layer.
        step: Real units a code of the input.
        shift: Bytes that stand for zero, one or one a channel.
    """

    def __init__(self, codes: Tensor, geometry: LayerGeometry, step: float, shift: Tensor):
        ones = torch.ones_like(codes[:geometry.groups])
        self._codes = _packed(ones, geometry, bool(shift.any()))
        self._scale = torch.full((geometry.groups,), step)
        self._zeros = torch.zeros(geometry.groups, dtype=torch.int64)
        self._bias = _less_zeros(None, weight_rows(ones, replace(
            geometry, out_channels=geometry.groups)), self._scale, shift)

    def of(self, product: Callable[..., Tensor], bytes_: Tensor, *steps: Any) -> Tensor:
        """The sums, one channel a group, by one of the products of bytes."""
        ones, = self._codes.of(bytes_.shape)
        return product(bytes_, ones, self._scale, self._zeros, self._bias, *steps)


def channels_come_first(x: Tensor) -> bool:
    """Whether torch's convolutions would give a map of this input channels first in memory."""
    return x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def _channels_first(y: Tensor) -> Tensor:
    if y.is_contiguous():
        return y
    from mmbitsplit.functional.kernels.byte_maps import channels_first
    return channels_first(y)


def _packed(codes: Tensor, geometry: LayerGeometry, padded: bool, halved: bool = False,
            ) -> PackedCodes:
    """Codes for oneDNN; ``padded`` where inputs come with their padding."""
    if geometry.kind == 'linear':
        return PackedCodes(codes.t(), pack_linear, halved)
    return PackedCodes(codes, functools.partial(
        pack_conv, stride=geometry.stride, padding=(0, 0) if padded else geometry.padding,
        dilation=geometry.dilation, groups=geometry.groups), halved)


def _less_zeros(bias: Tensor | None, rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor | None:
    """The bias less what the bytes that stand for zero add to a product.

    Args:
        bias: (out_channels,) or ``None``.
        rows: (G, M, N) codes.
        scale: (out_channels,) real units a step of the product.
        shift: (1,) or (in_channels,) the bytes.
    """
    if not bool(shift.any()):
        return None if bias is None else bias.detach().to(torch.float32)
    groups, _, count = rows.shape
    if shift.numel() == 1:
        shift = shift.expand(groups)
    each = shift.view(groups, 1, -1)
    each = each.repeat_interleave(count // each.shape[-1], -1)
    added = (rows.double() * each).sum(-1).flatten() * scale
    return ((0.0 if bias is None else bias.detach().double()) - added).to(torch.float32)
