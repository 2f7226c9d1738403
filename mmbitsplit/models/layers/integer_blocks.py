"""Transposed convolutions whose windows do not overlap, as pointwise convolutions.

Each input gives a block of outputs of its own: a product with one row an output channel and place
in the block, whose results are put side by side.
"""

from torch import Tensor

from mmbitsplit.functional import weight_rows
from mmbitsplit.structures import LayerGeometry


def makes_blocks(geometry: LayerGeometry) -> bool:
    """Whether each output of a transposed convolution comes from one input."""
    return geometry.kernel_size == geometry.stride and geometry.dilation == (1, 1) \
        and not any((*geometry.padding, *geometry.output_padding, *geometry.pre_padding)) \
        and geometry.auto_padding == 'none'


def product_geometry(geometry: LayerGeometry) -> LayerGeometry:
    """The pointwise convolution that a transposed one is; any other layer as it is."""
    if geometry.kind != 'conv_transpose2d':
        return geometry
    return LayerGeometry('conv2d', geometry.in_channels, geometry.out_channels * _places(geometry),
                         groups=geometry.groups)


def product_codes(codes: Tensor, geometry: LayerGeometry) -> Tensor:
    """Codes in the shape of the weight of ``product_geometry``."""
    if geometry.kind != 'conv_transpose2d':
        return codes
    rows = weight_rows(codes, geometry)  # (G, M, C / G * places)
    groups, outputs, _ = rows.shape
    each = rows.view(groups, outputs, -1, _places(geometry)).permute(0, 3, 1, 2)
    return each.reshape(product_geometry(geometry).weight_shape)


def layer_codes(codes: Tensor, geometry: LayerGeometry) -> Tensor:
    """Inverse of ``product_codes``."""
    if geometry.kind != 'conv_transpose2d':
        return codes
    groups, outputs = geometry.groups, geometry.out_channels // geometry.groups
    each = codes.view(groups, _places(geometry), outputs, -1).permute(0, 3, 2, 1)
    return each.reshape(geometry.weight_shape)


def product_values(values: Tensor | None, geometry: LayerGeometry) -> Tensor | None:
    """A value an output channel, for each output channel of ``product_geometry``."""
    if values is None or geometry.kind != 'conv_transpose2d':
        return values
    each = values.detach().view(geometry.groups, 1, -1)
    return each.expand(-1, _places(geometry), -1).flatten()


def side_by_side(y: Tensor, geometry: LayerGeometry) -> Tensor:
    """What the pointwise convolution gave as the transposed one gives it.

    Args:
        y: (B, places * out_channels, H, W), channels last in memory.
        geometry: Of the layer.

    Returns:
        (B, out_channels, rows * H, columns * W), channels last in memory.
    """
    if geometry.kind != 'conv_transpose2d':
        return y
    batch, _, height, width = y.shape
    rows, columns = geometry.kernel_size
    parts = y.permute(0, 2, 3, 1).reshape(batch, height, width, geometry.groups, rows, columns, -1)
    return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(
        batch, height * rows, width * columns, geometry.out_channels).permute(0, 3, 1, 2)


def _places(geometry: LayerGeometry) -> int:
    return geometry.kernel_size[0] * geometry.kernel_size[1]
