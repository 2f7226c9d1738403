"""The weight that codes stand for, written into memory that there is."""

import torch
from torch import Tensor

from mmbitsplit.functional.patches import per_output
from mmbitsplit.functional.quantizers.nesting import narrower_codes
from mmbitsplit.structures import LayerGeometry
from mmbitsplit.structures.solution import Nesting


def prepare_writing(device: torch.device) -> None:
    """Has the loop of ``write_weight`` compiled, so that its first call is as quick as others."""
    if device.type == 'cpu':
        import mmbitsplit.functional.kernels.switch_loops  # noqa: F401


def write_weight(weight: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None,
                 geometry: LayerGeometry, wider: tuple[Tensor, int, Nesting] | None = None,
                 ) -> None:
    """Writes ``scale * codes + offset``; on CPUs in one pass over memory.

    Args:
        weight: Float32, shape of the layer's weight, written.
        codes: int8, the same shape; read, or written where they are made here.
        scale: (out_channels,) float32.
        offset: (out_channels,) float32, or ``None``.
        geometry: Of the layer.
        wider: Codes of the widest, how many bits narrower the width is, at least 1, and how codes
            nest: ``codes`` are made of them.
    """
    source, shift, nesting = wider or (codes, 0, 'floor')
    tensors = [value for value in (weight, codes, source, scale, offset) if value is not None]
    if all(value.device.type == 'cpu' and value.is_contiguous() for value in tensors):
        from mmbitsplit.functional.kernels import switch_loops
        transposed = geometry.kind == 'conv_transpose2d'
        shape = (geometry.groups, geometry.in_channels // geometry.groups if transposed else 1,
                 geometry.out_channels // geometry.groups, -1)
        switch_loops.write_weight(
            weight.view(shape), source.view(shape), shift, nesting == 'planes', scale,
            torch.zeros_like(scale) if offset is None else offset, codes.view(shape))
        # Who saved the weight for its gradients must hear that it is another.
        torch.autograd.graph.increment_version(weight)
        return
    if shift:
        codes.copy_(narrower_codes(source, 8, 8 - shift, nesting))
    weight.copy_(codes).mul_(per_output(scale, geometry))
    if offset is not None:
        weight.add_(per_output(offset, geometry))
