"""Folds batch norms into the layer before them, where that is exact."""

import torch
from torch import Tensor, nn

from mmbitsplit.models.surgery.modules import has_hooks
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.layer_inside import scale_outputs
from mmbitsplit.structures import FoldedNorm, LayerGeometry


def foldable_batch_norms(model: nn.Module, flow: DataFlow) -> dict[str, str]:
    """Finds the batch norms that can be folded exactly.

    The norm must take the untouched output tensor of one layer in every call, nothing else may
    read that tensor or the norm's weights, and the norm must use running statistics. Hooks of the
    user's on layer or norm would see other tensors. A layer whose class goes on behind its product
    takes no norm in.

    Returns:
        Layer name by batch norm name.
    """
    modules = dict(model.named_modules())
    found = {}
    for norm_name, layer_name in flow.norm_after.items():
        if layer_name is None or layer_name in flow.unlike_torch \
                or layer_name in flow.inside and flow.inside[layer_name].after:
            continue
        norm = modules[norm_name]
        if norm_name in flow.read_elsewhere or has_hooks(norm) or has_hooks(modules[layer_name]):
            continue
        if flow.consumers[layer_name] == {norm_name} \
                and flow.calls[layer_name] == flow.norm_calls[norm_name] \
                and not norm.training and norm.running_var is not None \
                and (layer_name not in flow.also_read or bool(read_norm(norm).gamma.all())):
            found[norm_name] = layer_name
    return found


def fold_batch_norm(weight: Tensor, bias: Tensor | None, geometry: LayerGeometry,
                    norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the layer that computes layer and norm in one.

    Args:
        weight: What the layer multiplies by.
        bias: (out_channels,) or ``None``.
        geometry: Of the layer.
        norm: The batch norm on its output, in eval mode.

    Returns:
        Weight of the same shape and bias (out_channels,), in the weight's dtype; computed in
        float64.
    """
    known = read_norm(norm)
    old = torch.zeros_like(known.beta) if bias is None else bias.detach().double()
    factor = _factor(norm, known)
    folded = scale_outputs(weight.detach().double(), factor, geometry)
    folded_bias = known.beta + (old - norm.running_mean.double()) * factor
    return folded.to(weight.dtype), folded_bias.to(weight.dtype)


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (out_channels,), float64, that a batch norm in eval mode comes down to."""
    known = read_norm(norm)
    factor = _factor(norm, known)
    return factor, known.beta - norm.running_mean.double() * factor


def _factor(norm: nn.Module, known: FoldedNorm) -> Tensor:
    return known.gamma / torch.sqrt(norm.running_var.double() + norm.eps)  # (out_channels,)


def read_norm(norm: nn.Module) -> FoldedNorm:
    """Weight, bias and epsilon of a batch norm; 1 and 0 where it has none."""
    ones = torch.ones_like(norm.running_mean, dtype=torch.float64)
    gamma = ones if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(ones) if norm.bias is None else norm.bias.detach().double()
    return FoldedNorm(gamma.clone(), beta.clone(), norm.eps)
