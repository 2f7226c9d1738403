"""How inputs meet weights in a layer."""

from dataclasses import KW_ONLY, dataclass

KINDS = ('conv2d', 'conv_transpose2d', 'linear', 'embedding')
# Zero padding that follows from the input's size: TensorFlow's 'same', ceil(size / stride) outputs.
# Where it is uneven, one more is at the end ('upper') or at the start.
AUTO_PADDINGS = ('none', 'same_upper', 'same_lower')


@dataclass(frozen=True)
class LayerGeometry:
    """How inputs meet weights in a layer; sizes are (height, width).

    A linear layer is described by its kind and channels alone, and so is an embedding, whose rows
    are its output channels.
    """

    kind: str
    in_channels: int
    out_channels: int
    _: KW_ONLY
    groups: int = 1
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    # Padding that F.conv2d cannot do alone (reflect, replicate, circular, an uneven 'same'):
    # (left, right, top, bottom) and a mode of F.pad, applied first.
    pre_padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pre_padding_mode: str = 'zeros'
    # One of AUTO_PADDINGS; the other paddings are zero where it is not 'none'.
    auto_padding: str = 'none'

    @property
    def inputs_per_output(self) -> int:
        """Number N of weights of one output channel."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as torch stores it for this kind."""
        if self.kind in ('linear', 'embedding'):
            return (self.out_channels, self.in_channels)
        if self.kind == 'conv_transpose2d':
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
