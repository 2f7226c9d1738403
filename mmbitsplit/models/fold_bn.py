"""Folds batch norms into the layer before them, where that is exact."""

import torch
from torch import Tensor, nn

from mmbitsplit.models.dataflow import DataFlow
from mmbitsplit.models.geometry import layer_kind
from mmbitsplit.models.surgery import has_hooks


def foldable_batch_norms(model: nn.Module, flow: DataFlow) -> dict[str, str]:
    """Finds the batch norms that can be folded exactly.

    The norm must take the untouched output tensor of one layer in every call, nothing else may
    read that tensor or the norm's weights, and the norm must use running statistics. Hooks of the
    user's on layer or norm would see other tensors.

    Returns:
        Layer name by batch norm name.
    """
    modules = dict(model.named_modules())
    found = {}
    for norm_name, layer_name in flow.norm_after.items():
        if layer_name is None or layer_name in flow.unlike_torch:
            continue
        norm = modules[norm_name]
        if norm_name in flow.read_elsewhere or has_hooks(norm) or has_hooks(modules[layer_name]):
            continue
        if flow.consumers[layer_name] == {norm_name} \
                and flow.calls[layer_name] == flow.norm_calls[norm_name] \
                and not norm.training and norm.running_var is not None:
            found[norm_name] = layer_name
    return found


def fold_batch_norm(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the layer that computes layer and norm in one.

    Args:
        layer: Conv2d, ConvTranspose2d or Linear.
        norm: The batch norm on its output, in eval mode.

    Returns:
        Weight of the layer's own shape and bias (out_channels,), in the layer's dtype;
        computed in float64.
    """
    weight = layer.weight.detach().double()
    bias = torch.zeros_like(norm.running_mean, dtype=torch.float64) if layer.bias is None \
        else layer.bias.detach().double()
    gamma = torch.ones_like(bias) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(bias) if norm.bias is None else norm.bias.detach().double()
    factor = gamma / torch.sqrt(norm.running_var.double() + norm.eps)  # (out_channels,)
    if layer_kind(layer) == 'conv_transpose2d':  # (in, out/groups, kh, kw), groups along in
        per_group = factor.view(layer.groups, -1)  # (G, M)
        spread = per_group.repeat_interleave(weight.shape[0] // layer.groups, dim=0)  # (in, M)
        folded = weight * spread.unsqueeze(-1).unsqueeze(-1)
    else:
        folded = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    folded_bias = beta + (bias - norm.running_mean.double()) * factor
    return folded.to(layer.weight.dtype), folded_bias.to(layer.weight.dtype)
