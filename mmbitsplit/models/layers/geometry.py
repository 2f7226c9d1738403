"""Reads a torch layer's geometry; says which layers are supported."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.functional import gather_outputs, gather_patches, output_size, weight_rows
from mmbitsplit.structures import LayerGeometry

_PLAIN = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d,
          nn.BatchNorm3d, nn.SyncBatchNorm, nn.modules.batchnorm._BatchNorm)
_KINDS = ((nn.Conv2d, 'conv2d'), (nn.ConvTranspose2d, 'conv_transpose2d'),
          (nn.Linear, 'linear'))
# Outputs of a call that are computed again to see whether a layer does what its class says.
POSITIONS_TO_COMPARE = 1024
# Subclasses of nn.Linear whose weight is used by their parent, not by a call of their own, until
# ``models.opening`` calls them.
_NEVER_CALLED = ('NonDynamicallyQuantizableLinear',)


def layer_kind(module: nn.Module) -> str | None:
    """Returns the kind of a layer by its class, or ``None`` when it is none of ours.

    A subclass may compute something else than its parent (weight standardization, deformable
    sampling); ``computes_like_torch`` settles that on real data. One that holds layers of its own
    (LoRA) is none, whatever it computes before they are trained, and one that is quantized is none.
    """
    if _is_quantized(module) or holds_layers(module):
        return None
    if type(module).__name__ in _NEVER_CALLED and not hasattr(module, 'opened_call'):
        return None
    for cls, kind in _KINDS:
        if isinstance(module, cls):
            return kind
    return None


def takes_codes(module: nn.Module) -> bool:
    """Whether a module's weight can be codes by its class: a layer's, or an embedding's."""
    return layer_kind(module) is not None or isinstance(module, nn.Embedding)


def holds_layers(module: nn.Module) -> bool:
    """Whether a layer by its class has layers inside, which it adds to what it computes."""
    classes = tuple(cls for cls, _ in _KINDS)
    inside = (inner for child in module.children() for inner in child.modules())
    return isinstance(module, classes) and any(
        isinstance(inner, classes) or _is_quantized(inner) for inner in inside)


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(getattr(module, 'geometry', None), LayerGeometry)


def is_replaced(module: nn.Module) -> bool:
    """Whether a module is of a kind that may be quantized or folded: a layer, a batch norm."""
    return layer_kind(module) is not None or isinstance(module, nn.modules.batchnorm._BatchNorm)


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
        kind, module.in_channels, module.out_channels, groups=module.groups,
        kernel_size=tuple(module.kernel_size), stride=tuple(module.stride),
        padding=tuple(padding), dilation=tuple(module.dilation),
        output_padding=tuple(module.output_padding), pre_padding=pre_padding,
        pre_padding_mode=pre_padding_mode)


def own_forward(module: nn.Module) -> bool:
    """Whether a layer's or norm's class runs code of its own when it is called."""
    plain = next(cls for cls in _PLAIN if isinstance(module, cls))
    return type(module).forward is not plain.forward or 'forward' in vars(module) \
        or getattr(type(module), '_conv_forward', None) is not getattr(plain, '_conv_forward', None)


def computes_like_torch(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a layer's output is what its weight and geometry say.

    Args:
        module: A layer of a known kind.
        x: Its input in a call.
        y: Its output in that call.
    """
    return computes(layer_geometry(module), module.weight, module.bias, x, y)


def computes(geometry: LayerGeometry, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor,
             ) -> bool:
    """Whether an output is what weight, bias and geometry make of an input.

    Args:
        geometry: Of the layer.
        weight: As torch stores it for this kind.
        bias: (out_channels,) or ``None``.
        x: The input.
        y: The output.
    """
    size = output_size(geometry, x.shape)
    if y.numel() != geometry.out_channels * math.prod(size) or y.dim() != x.dim():
        return False
    # Odd, so that a map whose width it divides is not looked at in the same columns only.
    step = (max(1, math.prod(size) // POSITIONS_TO_COMPARE) - 1) | 1
    positions = torch.arange(0, math.prod(size), step, device=x.device)
    expected = weight_rows(weight, geometry) @ gather_patches(x, positions, geometry)
    if bias is not None:
        expected = expected + bias.view(geometry.groups, -1, 1)
    return alike(expected, gather_outputs(y, positions, geometry))


def normalizes_like_torch(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a batch norm's output is what its running statistics say; a subclass may do more.

    Args:
        module: A batch norm in eval mode; without running statistics the answer is no.
        x: Its input in a call.
        y: Its output in that call.
    """
    if module.training or module.running_mean is None:
        return False
    if x.shape != y.shape:
        return False
    x, y = (value.flatten(2)[..., ::max(1, value[0, 0].numel() // POSITIONS_TO_COMPARE)]
            if value.dim() > 2 and len(value) else value for value in (x, y))
    expected = F.batch_norm(x, module.running_mean, module.running_var, module.weight,
                            module.bias, False, 0.0, module.eps)
    return alike(expected, y)


def alike(expected: Tensor, y: Tensor) -> bool:
    """Whether two outputs are the same but for the order of summation."""
    if not y.numel():
        return True
    size = float(y.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
    # Under autocast two ways to add up differ by the last bit of the lower precision.
    tolerance = max(1e-4, 2 * torch.finfo(y.dtype).eps)
    return torch.allclose(expected.to(y.dtype), y, rtol=tolerance, atol=tolerance * size,
                          equal_nan=True)  # NaN is for calibration to report
