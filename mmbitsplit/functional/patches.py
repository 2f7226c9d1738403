"""Input patches at sampled output positions, as columns of the matrix that a layer multiplies.

Positions are chosen first and only their patches gathered; a feature map is never unfolded.
For every supported layer ``outputs = weight_rows(weight) @ gather_patches(x) + bias``.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbitsplit.structures import LayerGeometry

# Of this many times as many inputs, elements are taken one by one: dearer each, but without a copy
# of the whole input (32 images of 256 x 56 x 56: 59 ms, 2 ms without).
FEW = 8


def explicit_padding(geometry: LayerGeometry, input_shape: Sequence[int]) -> LayerGeometry:
    """Returns the geometry of a call on an input of this shape, no padding left to a rule.

    Args:
        geometry: The layer.
        input_shape: (B, C, H, W), or (C, H, W) as one image.

    Source: ``padding='SAME'`` of ``tf.nn.conv2d``: ceil(size / stride) outputs.
    """
    if geometry.auto_padding == 'none':
        return geometry
    pads = []
    for axis in (1, 0):  # F.pad has the last dimension first
        size, stride = input_shape[axis - 2], geometry.stride[axis]
        span = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        pads += [less, more] if geometry.auto_padding == 'same_upper' else [more, less]
    left, right, top, bottom = pads
    if (left, top) == (right, bottom):
        return replace(geometry, auto_padding='none', padding=(top, left))
    return replace(geometry, auto_padding='none', pre_padding=(left, right, top, bottom))


def output_size(geometry: LayerGeometry, input_shape: torch.Size) -> tuple[int, ...]:
    """Returns the sizes that number the output positions of one call.

    Args:
        geometry: The layer.
        input_shape: (B, C, H, W), (C, H, W) as one image, or (..., C) for a linear layer.

    Returns:
        (B, out_H, out_W), or the leading sizes of a linear layer's input.
    """
    if geometry.kind == 'linear':
        return tuple(input_shape[:-1])
    sizes = []
    for axis in (0, 1):
        if geometry.auto_padding != 'none':
            sizes.append(-(-input_shape[axis - 2] // geometry.stride[axis]))
            continue
        size = input_shape[axis - 2] + sum(_pre_padding(geometry, axis))
        span = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) + 1
        stride, padding = geometry.stride[axis], geometry.padding[axis]
        if geometry.kind == 'conv2d':
            sizes.append((size + 2 * padding - span) // stride + 1)
        else:
            sizes.append((size - 1) * stride - 2 * padding + span
                         + geometry.output_padding[axis])
    return (input_shape[0] if len(input_shape) == 4 else 1, *sizes)


def gather_patches(x: Tensor, positions: Tensor, geometry: LayerGeometry) -> Tensor:
    """Gathers what enters the layer's product at some output positions.

    Args:
        x: (B, C, H, W), (C, H, W) as one image, or (..., C) for a linear layer.
        positions: (K,) int64, flat indices into ``output_size``.
        geometry: The layer.

    Returns:
        (G, N, K) in the dtype of x, N = C/G * kh * kw in the order of ``weight_rows``; padding
        gives zeros, and so do the gaps that a transposed convolution puts between inputs.
    """
    if geometry.kind == 'linear':
        return x.reshape(-1, x.shape[-1])[positions].t().unsqueeze(0)
    geometry = explicit_padding(geometry, x.shape)
    if geometry.pre_padding_mode != 'zeros' or any(geometry.pre_padding):
        mode = 'constant' if geometry.pre_padding_mode == 'zeros' else geometry.pre_padding_mode
        x = F.pad(x, geometry.pre_padding, mode=mode)
        geometry = _without_pre_padding(geometry)
    x = x if x.dim() == 4 else x.unsqueeze(0)
    batch, channels, height, width = x.shape
    _, out_height, out_width = output_size(geometry, x.shape)
    image = positions // (out_height * out_width)
    row, valid_row = _input_index(positions // out_width % out_height, geometry, 0, height)
    column, valid_column = _input_index(positions % out_width, geometry, 1, width)
    begin = row.unsqueeze(1) * width  # (kh, 1, K) flat index into (H, W) where the row begins
    valid = valid_row.unsqueeze(1) & valid_column.unsqueeze(0)  # (kh, kw, K) a real input there
    if batch > 1 and FEW * valid.numel() < batch * height * width:
        patches = x.flatten(2)[image, :, begin + column].movedim(-1, 0).contiguous()
    else:
        flat = x.transpose(0, 1).reshape(channels, -1)  # (C, B*H*W), of several images a copy
        index = (image * height * width + begin) + column
        patches = flat.index_select(1, index.reshape(-1)).view(channels, *index.shape)
    if not bool(valid.all()):
        patches.mul_(valid.to(patches.dtype))
    return patches.view(geometry.groups, geometry.inputs_per_output, positions.numel())


def gather_outputs(output: Tensor, positions: Tensor, geometry: LayerGeometry) -> Tensor:
    """Gathers a layer's outputs at some positions: (G, M, K), a copy.

    Args:
        output: (B, M * G, H, W), (M * G, H, W), or (..., M) of a linear layer.
        positions: (K,) int64, flat indices into ``output_size``.
        geometry: The layer.
    """
    if geometry.kind == 'linear':
        rows = output.reshape(-1, output.shape[-1]).index_select(0, positions).t()
    else:
        maps = (output if output.dim() == 4 else output.unsqueeze(0)).flatten(2)  # (B, M*G, H*W)
        image, place = positions // maps.shape[2], positions % maps.shape[2]
        rows = maps[0].index_select(1, place) if len(maps) == 1 else maps[image, :, place].t()
    return rows.contiguous().view(geometry.groups, geometry.out_channels // geometry.groups,
                                  positions.numel())


def _input_index(out: Tensor, geometry: LayerGeometry, axis: int, size: int,
                 ) -> tuple[Tensor, Tensor]:
    """Input coordinate under each kernel tap, (k, K), and whether there is an input."""
    taps = torch.arange(geometry.kernel_size[axis], device=out.device).unsqueeze(1)
    taps = taps * geometry.dilation[axis]
    stride, padding = geometry.stride[axis], geometry.padding[axis]
    if geometry.kind == 'conv2d':
        index = out * stride - padding + taps
        valid = (index >= 0) & (index < size)
    else:
        spread = out + padding - taps
        index = torch.div(spread, stride, rounding_mode='floor')
        valid = (spread % stride == 0) & (index >= 0) & (index < size)
    return index.clamp(0, size - 1), valid


def weight_rows(weight: Tensor, geometry: LayerGeometry) -> Tensor:
    """Views a layer's weight as (G, M, N), in the column order of ``gather_patches``."""
    groups = geometry.groups
    if geometry.kind == 'conv_transpose2d':
        # (C, M, kh, kw) -> (G, C/G, M, taps) -> (G, M, C/G, taps)
        grouped = weight.reshape(groups, geometry.in_channels // groups,
                                 geometry.out_channels // groups, -1)
        return grouped.transpose(1, 2).reshape(groups, geometry.out_channels // groups, -1)
    return weight.reshape(groups, geometry.out_channels // groups, -1)


def rows_to_weight(rows: Tensor, geometry: LayerGeometry) -> Tensor:
    """Inverse of ``weight_rows``: (G, M, N) back to the shape torch stores."""
    if geometry.kind == 'conv_transpose2d':
        groups = geometry.groups
        grouped = rows.reshape(groups, geometry.out_channels // groups,
                               geometry.in_channels // groups, -1)
        return grouped.transpose(1, 2).reshape(geometry.weight_shape)
    return rows.reshape(geometry.weight_shape)


def per_input(values: Tensor, geometry: LayerGeometry) -> Tensor:
    """Spreads one value a channel, (C,) or (1,), over the inputs of a product, (G, N)."""
    if values.numel() == 1:
        return values.reshape(1, 1).expand(geometry.groups, geometry.inputs_per_output)
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    return values.repeat_interleave(taps).view(geometry.groups, -1)


def per_output(values: Tensor, geometry: LayerGeometry) -> Tensor:
    """Views one value an output channel, (out_channels,), so that it broadcasts over a weight."""
    trailing = (1,) * (len(geometry.weight_shape) - 2)
    if geometry.kind != 'conv_transpose2d':
        return values.view(-1, 1, *trailing)
    # The weight is (groups of inputs, outputs of a group, kh, kw).
    inputs = geometry.in_channels // geometry.groups
    return values.view(geometry.groups, -1).repeat_interleave(inputs, 0).unflatten(
        -1, (-1, *trailing))


def apply_layer(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: LayerGeometry,
                ) -> Tensor:
    """Computes the layer as torch does: x (B, C, H, W), (C, H, W) or (..., C) to its output."""
    if geometry.kind == 'linear':
        return F.linear(x, weight, bias)
    geometry = explicit_padding(geometry, x.shape)
    if geometry.pre_padding_mode != 'zeros' or any(geometry.pre_padding):
        mode = 'constant' if geometry.pre_padding_mode == 'zeros' else geometry.pre_padding_mode
        x = F.pad(x, geometry.pre_padding, mode=mode)
    if geometry.kind == 'conv_transpose2d':
        return F.conv_transpose2d(x, weight, bias, geometry.stride, geometry.padding,
                                  geometry.output_padding, geometry.groups, geometry.dilation)
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation,
                    geometry.groups)


def channel_dim(geometry: LayerGeometry) -> int:
    """The dimension of the layer's input that channels run along, with a batch or without."""
    return -1 if geometry.kind == 'linear' else -3


def output_channel_dim(shape: Sequence[int], geometry: LayerGeometry) -> int:
    """The dimension that channels run along in what is made of a layer's output.

    That of the layer's own outputs, if it has as many entries; else the one that has: the output
    may have been turned. The last where none has and there is none such.

    Args:
        shape: Of what is made of it, images first.
        geometry: Of the layer.

    Returns:
        Counted from the end.
    """
    usual = channel_dim(geometry)
    others = [dim for dim in range(1 - len(shape), 0) if shape[dim] == geometry.out_channels]
    if len(shape) < -usual:
        return others[0] if others else -1
    return usual if not others or usual in others else others[0]


def _pre_padding(geometry: LayerGeometry, axis: int) -> tuple[int, int]:
    left, right, top, bottom = geometry.pre_padding
    return (top, bottom) if axis == 0 else (left, right)


def _without_pre_padding(geometry: LayerGeometry) -> LayerGeometry:
    return replace(geometry, pre_padding=(0, 0, 0, 0), pre_padding_mode='zeros')
