"""Convolutions in the place of a vision transformer's patch embedding, for the demo's ViT.

A transformer that sees patches alone stays at chance on the demo's crops, whose digits are lighter
or darker than what lies under them. Source: Xiao et al., Early Convolutions Help Transformers See
Better, NeurIPS 2021, section 5. Differs from source: a second convolution at half the resolution,
and the starting weights.
"""

import torch
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class ConvStem(nn.Sequential):
    """3x3 convolutions of stride 2 with batch norm and ReLU, then one of 1x1 that gives tokens.

    It is built as a ``conv_type`` of mmcv's ``PatchEmbed``, whose arguments it takes. Two choices
    of starting weights shorten the time at chance: filters of the first layer have mean zero, so
    that they see edges and not the colour of the ground; tokens are small, so that they do not
    drown the position embedding.

    Args:
        in_channels: Of the image.
        out_channels: Of the tokens; each layer of stride 2 before the last has half as many.
        kernel_size: Height and width of a patch in pixels, the same power of two.
        stride: The same.
        kwargs: ``padding``, ``dilation`` and ``bias``, which have no meaning here.

    Raises:
        ValueError: If a patch is no square of 2, 4, 8 or more pixels, or patches overlap.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int],
                 stride: tuple[int, int], **kwargs):
        count = kernel_size[0].bit_length() - 1
        if kernel_size != (2 ** count, 2 ** count) or stride != kernel_size or not count:
            raise ValueError(f'ConvStem: kernel_size={kernel_size} and stride={stride} must be the '
                             'same power of two in both directions; set patch_size to 4, 8 or 16.')
        widths = [in_channels, *(out_channels >> left for left in reversed(range(count)))]
        layers = [_layer(narrow, wide, 2) for narrow, wide in zip(widths, widths[1:])]
        layers.insert(1, _layer(widths[1], widths[1], 1))
        tokens = nn.Conv2d(out_channels, out_channels, 1)
        super().__init__(*layers, tokens)
        first = layers[0][0].weight  # (wide, in_channels, 3, 3)
        with torch.no_grad():
            first -= first.mean((2, 3), keepdim=True)
        nn.init.normal_(tokens.weight, std=0.01)
        nn.init.zeros_(tokens.bias)


def _layer(narrow: int, wide: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide),
                         nn.ReLU())
