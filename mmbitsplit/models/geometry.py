"""Reads a torch layer's geometry; says which layers are supported."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.functional import apply_layer
from mmbitsplit.structures import LayerGeometry

_KINDS = ((nn.Conv2d, 'conv2d'), (nn.ConvTranspose2d, 'conv_transpose2d'),
          (nn.Linear, 'linear'))
# Subclasses of nn.Linear whose weight is used by their parent, not by a call of their own.
_NEVER_CALLED = ('NonDynamicallyQuantizableLinear',)


def layer_kind(module: nn.Module) -> str | None:
    """Returns the kind of a layer by its class, or ``None`` when it is none of ours.

    A subclass may compute something else than its parent (weight standardization, deformable
    sampling); ``computes_like_torch`` settles that on real data.
    """
    if type(module).__name__ in _NEVER_CALLED:
        return None
    for cls, kind in _KINDS:
        if isinstance(module, cls):
            return kind
    return None


def layer_geometry(module: nn.Module) -> LayerGeometry:
    """Reads the geometry of a supported layer.

    Raises:
        ValueError: The module is not a Conv2d, ConvTranspose2d or Linear.
    """
    kind = layer_kind(module)
    if kind is None:
        raise ValueError(f'{type(module).__name__} is not supported; allowed are Conv2d, '
                         'ConvTranspose2d and Linear.')
    if kind == 'linear':
        return LayerGeometry(kind, module.in_features, module.out_features)
    padding, pre_padding, pre_padding_mode = module.padding, (0, 0, 0, 0), 'zeros'
    if kind == 'conv2d' and (module.padding_mode != 'zeros' or isinstance(padding, str)):
        pre_padding = tuple(module._reversed_padding_repeated_twice)
        pre_padding_mode, padding = module.padding_mode, (0, 0)
    return LayerGeometry(
        kind, module.in_channels, module.out_channels, module.groups, tuple(module.kernel_size),
        tuple(module.stride), tuple(padding), tuple(module.dilation),
        tuple(module.output_padding), pre_padding, pre_padding_mode)


def computes_like_torch(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a layer's output is what its weight and geometry say.

    Args:
        module: A layer of a known kind.
        x: Its input in a call.
        y: Its output in that call.
    """
    expected = apply_layer(x, module.weight, module.bias, layer_geometry(module))
    return expected.shape == y.shape and torch.allclose(
        expected, y, rtol=1e-4, atol=1e-5, equal_nan=True)  # NaN is for calibration to report


def normalizes_like_torch(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a batch norm's output is what its running statistics say; a subclass may do more.

    Args:
        module: A batch norm in eval mode; without running statistics the answer is no.
        x: Its input in a call.
        y: Its output in that call.
    """
    if module.training or module.running_mean is None:
        return False
    expected = F.batch_norm(x, module.running_mean, module.running_var, module.weight,
                            module.bias, False, 0.0, module.eps)
    return expected.shape == y.shape and torch.allclose(
        expected, y, rtol=1e-4, atol=1e-5, equal_nan=True)  # NaN is for calibration to report
